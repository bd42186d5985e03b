"""The same promises under torch.compile and bf16: it learns, and it resumes to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

from miudo.data.samples import pack_samples
from miudo.decoder.lora import LoraSettings, add_lora
from miudo.text.answers import Sample
from miudo.train.loop import fit
from miudo.train.loss import cross_entropy
from miudo.train.plan import make_plan
from miudo.train.settings import Compile, Precision
from miudo.train.speed import compiled_blocks, compiled_steps, kept_threads, short_attention
from miudo.train.stepper import Stepper

# PyTorch's own compiler uses what PyTorch deprecated, and warns while it traces.
pytestmark = pytest.mark.filterwarnings("ignore")
slow = pytest.mark.slow


@slow
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


@slow
@pytest.mark.parametrize("checkpoint", [False, True])
def test_side_paths_on_packed_samples_resume_to_the_bit_and_agree_with_eager(
    small: Any, tmp_path: Path, checkpoint: bool
) -> None:
    samples = [
        Sample(tuple(range(i, i + n)), tuple(k > 1 for k in range(n)))
        for i, n in ((1, 4), (9, 7), (20, 5), (30, 9), (40, 3))
    ]
    data = pack_samples(samples, 8, pad_id=0)
    losses = []
    for name, choice in (("a", Compile.ON), ("b", Compile.ON), ("c", Compile.OFF)):
        settings = small.settings(compile=choice, checkpoint_activations=checkpoint)
        decoder = add_lora(small.decoder(), LoraSettings(rank=2), 0)
        losses.append(fit(decoder, data, settings, tmp_path / name).loss)
    small.forget_after(tmp_path / "b", 4)
    settings = small.settings(compile=Compile.ON, checkpoint_activations=checkpoint)
    decoder = add_lora(small.decoder(), LoraSettings(rank=2), 0)
    fit(decoder, data, settings, tmp_path / "b", resume=True)
    assert small.hashes(tmp_path / "a", 8) == small.hashes(tmp_path / "b", 8)
    # Fused operations round differently; losses near 4.
    assert losses[0] == pytest.approx(losses[2], abs=2e-3)


@slow
def test_compiled_and_eager_runs_agree(small: Any, tmp_path: Path) -> None:
    losses = []
    for compiled in (Compile.ON, Compile.OFF):
        settings = small.settings(compile=compiled)
        result = fit(small.decoder(), small.tokens(), settings, tmp_path / compiled.value)
        losses.append(result.loss)
    # Fused operations round differently; eight steps of 0.01 on losses near 4.
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


@slow
def test_minutes_count_the_compilation(small: Any, tmp_path: Path) -> None:
    settings = small.settings(steps=None, minutes=0.01, compile=Compile.ON, save_every=0)
    result = fit(small.decoder(), small.tokens(), settings, tmp_path / "run")
    assert result.plan.compiled
    assert result.plan.steps >= 1


def test_blocks_are_left_as_they_were(small: Any) -> None:
    decoder = small.decoder()
    ids = torch.zeros(1, 8, dtype=torch.int64)
    with compiled_blocks(decoder):
        cross_entropy(decoder, ids)
        assert all(block._compiled_call_impl is not None for block in decoder.layers)
    assert all(block._compiled_call_impl is None for block in decoder.layers)


@slow
def test_two_threads_in_bf16_repeat_their_bits(small: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        with kept_threads(2):
            small.begin(tmp_path / name, compile=Compile.ON, precision=Precision.BF16)
    assert small.hashes(tmp_path / "a", 8) == small.hashes(tmp_path / "b", 8)


def test_short_attention_is_the_same_attention(small: Any) -> None:
    decoder, settings, ids = small.decoder(), small.settings(), torch.arange(18).reshape(2, 9)
    with short_attention(decoder, settings, make_plan(settings, steps=1, compiled=True)):
        products = cross_entropy(decoder, ids)[0]
    fused = cross_entropy(decoder, ids)[0]
    # float32, sums in another order.
    assert float(products.detach()) == pytest.approx(float(fused.detach()), abs=1e-6)


@pytest.mark.parametrize("precision", [Precision.F32, Precision.BF16])
@pytest.mark.parametrize("compile_", [False, True])
def test_eager_float32_keeps_the_fused_attention(
    small: Any, precision: Precision, compile_: bool
) -> None:
    settings = small.settings(precision=precision)
    plan = make_plan(settings, steps=1, compiled=compile_)
    with short_attention(small.decoder(), settings, plan):
        fused = torch.backends.cuda.flash_sdp_enabled()  # read on processors too
    assert fused == (precision is Precision.F32 and not compile_)
    assert torch.backends.cuda.flash_sdp_enabled()


def test_a_damaged_compiler_cache_is_stepped_round(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.exc import InductorError

    settings = small.settings(compile=Compile.ON)
    run = Stepper(small.decoder(), small.tokens(), settings, cross_entropy)
    places = []

    def rehearse(plan: Any) -> None:
        places.append(cache_dir())
        if len(places) == 1:
            raise InductorError(ImportError("file too short"), None)

    monkeypatch.setattr(run, "rehearse", rehearse)
    with compiled_steps(run, make_plan(settings, steps=8, compiled=True)):
        assert len(places) == 2
        assert places[0] != places[1] == cache_dir()
    assert cache_dir() == places[0]


def test_a_rehearsal_leaves_no_trace(small: Any) -> None:
    decoder = small.decoder()
    run = Stepper(decoder, small.tokens(), small.settings(), cross_entropy)
    before = {name: p.detach().clone() for name, p in decoder.named_parameters()}
    random = torch.get_rng_state()
    run.rehearse(make_plan(small.settings(), steps=8, compiled=False))
    assert torch.equal(torch.get_rng_state(), random)
    assert run.optimizers.tensors() == {}
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])
