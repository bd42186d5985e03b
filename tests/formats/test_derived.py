"""Models larger than memory: tensors made one by one, mapped pages given back."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from miudo.formats import ModelFile, open_model
from miudo.formats.blocks import encode
from miudo.formats.derived import DerivedTensor, drop_pages
from miudo.formats.gguf import write_gguf
from miudo.formats.hf import write_folder
from miudo.tensors import DType, StoredTensor

Make = Callable[..., ModelFile]


def mapped_kib() -> int:
    """This process's pages that belong to files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile:"))


def test_data_is_made_anew_and_never_kept() -> None:
    calls = []

    def twice(one: StoredTensor, other: StoredTensor) -> np.ndarray:
        calls.append((one.dtype, other.shape))
        return np.concatenate([one.data, other.data])

    row = encode(np.ones((1, 4), dtype=np.float32), DType.F32)
    inner = DerivedTensor(DType.F32, (2, 4), twice, row, row)
    outer = DerivedTensor(DType.F32, (3, 4), twice, inner, row)
    assert (outer.dtype, outer.shape, calls) == (DType.F32, (3, 4), [])
    assert outer.data.view("<f4").tolist() == [1.0] * 12
    assert calls == [(DType.F32, (1, 4)), (DType.F32, (1, 4))]
    assert outer.data is not outer.data
    assert len(calls) == 6


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_pages_of_a_file_are_let_go_and_come_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, 32 << 20, dtype=np.uint8)
    path = tmp_path / "m"
    path.write_bytes(values.tobytes())
    import mmap

    with path.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    part = np.frombuffer(view, dtype=np.uint8)[100:-50].view(np.int8)[7:]
    total, before = int(part.sum()), mapped_kib()
    drop_pages(part)
    assert mapped_kib() < before - (30 << 10)
    assert int(part.sum()) == total
    drop_pages(values)  # memory that is no map stays as it is
    drop_pages(part[:0])
    np.testing.assert_array_equal(values[107:-50].view(np.int8), part)


def test_a_file_is_written_tensor_by_tensor(
    make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 layers take no more memory than 2."""
    # One thread: how much several hold at a time is chance.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    peaks = []
    for n_layers in (2, 12):
        folder = tmp_path / str(n_layers)
        write_folder(folder, make_model(d_model=256, d_ff=1024, n_layers=n_layers))
        model = open_model(folder)
        tracemalloc.start()
        write_gguf(tmp_path / "m.gguf", model, dtype=DType.Q8_0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        reread = open_model(tmp_path / "m.gguf").weights
        for name in ("layers.1.attn.q.weight", "layers.0.mlp.down.weight"):
            expected = encode(model.weights[name].data.view("<f4").reshape(
                model.weights[name].shape), DType.Q8_0)  # fmt: skip
            np.testing.assert_array_equal(reread[name].data, expected.data)
    assert peaks[1] < peaks[0] + (256 << 10)  # ten more layers: 10 MiB as Q8_0
