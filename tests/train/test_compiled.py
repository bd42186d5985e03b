"""The same promises under torch.compile and bf16: it learns, and it resumes to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from miudo.train.loop import fit
from miudo.train.loss import cross_entropy
from miudo.train.settings import Compile, Precision
from miudo.train.speed import compiled_blocks, kept_threads, short_attention

# PyTorch's own compiler uses what PyTorch deprecated, and warns while it traces.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("precision", [Precision.F32, Precision.BF16])
def test_a_compiled_run_resumes_to_the_bit(
    small: Any, tmp_path: Path, precision: Precision
) -> None:
    changes = {"compile": Compile.ON, "precision": precision}
    small.begin(tmp_path / "a", **changes)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    small.forget_after(tmp_path / "b", 4)
    torch._dynamo.reset()
    small.go_on(tmp_path / "b", **changes)
    assert small.hashes(tmp_path / "b", 8) == small.hashes(tmp_path / "a", 8)


def test_compiled_and_eager_runs_agree(small: Any, tmp_path: Path) -> None:
    losses = []
    for compiled in (Compile.ON, Compile.OFF):
        settings = small.settings(compile=compiled)
        result = fit(small.decoder(), small.tokens(), settings, tmp_path / compiled.value)
        losses.append(result.loss)
    # Fused operations round differently; eight steps of 0.01 on losses near 4.
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


def test_minutes_count_the_compilation(small: Any, tmp_path: Path) -> None:
    settings = small.settings(steps=None, minutes=0.5, compile=Compile.ON, save_every=0)
    result = fit(small.decoder(), small.tokens(), settings, tmp_path / "run")
    assert result.plan.compiled
    assert result.plan.steps > 1


def test_blocks_are_left_as_they_were(small: Any) -> None:
    decoder = small.decoder()
    ids = torch.zeros(1, 8, dtype=torch.int64)
    with compiled_blocks(decoder):
        cross_entropy(decoder, ids)
        assert all(block._compiled_call_impl is not None for block in decoder.layers)
    assert all(block._compiled_call_impl is None for block in decoder.layers)


def test_two_threads_in_bf16_repeat_their_bits(small: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        with kept_threads(2):
            small.begin(tmp_path / name, compile=Compile.ON, precision=Precision.BF16)
    assert small.hashes(tmp_path / "a", 8) == small.hashes(tmp_path / "b", 8)


def test_short_attention_is_the_same_attention(small: Any) -> None:
    decoder, ids = small.decoder(), torch.arange(18).reshape(2, 9)
    with short_attention(decoder, small.settings()):
        products = cross_entropy(decoder, ids)[0]
    fused = cross_entropy(decoder, ids)[0]
    # float32, sums in another order.
    assert float(products.detach()) == pytest.approx(float(fused.detach()), abs=1e-6)
