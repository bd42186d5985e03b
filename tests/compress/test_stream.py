"""A block's inputs lie in a file, come back to the bit, and a full disk is told by name."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from miudo.compress.station import Station
from miudo.compress.stream import Stream
from miudo.compress.walk import walk
from miudo.decoder.decoder import Decoder
from miudo.errors import ResourceError

Make = Callable[[str], Decoder]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_come_back_to_the_bit(dtype: torch.dtype) -> None:
    given = [torch.randn(b, t, 6).to(dtype).transpose(0, 1) for b, t in ((2, 5), (3, 1), (1, 7))]
    kept = Stream(iter(given))
    assert len(kept) == 3
    assert kept.tokens == 20
    for _ in range(2):
        assert all(torch.equal(x, y) for x, y in zip(kept, given, strict=True))
    kept[1] = given[1] + 1
    assert torch.equal(kept[1], given[1] + 1)
    assert torch.equal(kept[2], given[2])
    with pytest.raises(ValueError, match="in the place of"):
        kept[1] = given[0]
    kept[0].zero_()  # what was read is a copy
    assert torch.equal(kept[0], given[0])


def test_the_file_has_no_name_and_goes_with_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = Stream([torch.ones(1, 2, 3)])
    assert list(tmp_path.iterdir()) == []
    assert opened_in(tmp_path) == 1
    del kept
    gc.collect()
    assert opened_in(tmp_path) == 0


def opened_in(folder: Path) -> int:
    """Returns how many files there this process has open, those without a name too."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    return sum(link.startswith(str(folder)) for link in links)


def test_a_full_disk_is_told_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = Stream([torch.ones(1, 2, 3)])

    class Full:
        def __getattr__(self, name: str) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept, "_file", Full())
    with pytest.raises(ResourceError, match=f"{tmp_path.name}.*TMPDIR"):
        kept[0] = torch.ones(1, 2, 3)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox", "gemma"])
def test_kept_attention_is_what_would_be_computed_again(
    kind: str, tiny: Make, batches: list[Tensor]
) -> None:
    decoder = tiny(kind)

    def after(station: Station) -> list[Tensor]:
        with torch.no_grad():
            station.weights[f"{station.name}.mlp.down.weight"].mul_(0.5)
        given = [station.given(f"{station.name}.mlp.down.weight", i) for i in range(len(batches))]
        return [*given, *station.outputs()]

    for again, once in zip(walk(tiny(kind), batches), walk(decoder, batches), strict=True):
        if again.name == "head":
            continue
        names = [name for name, _ in once.module.named_parameters()]
        once.keep_attention()
        assert [name for name, _ in once.module.named_parameters()] == names
        assert all(torch.equal(a, b) for a, b in zip(after(again), after(once), strict=True))
        # What attention's matrices become is not asked any more.
        with torch.no_grad():
            once.weights[f"{once.name}.attn.o.weight"].zero_()
        assert all(torch.equal(a, b) for a, b in zip(again.outputs(), once.outputs(), strict=True))
