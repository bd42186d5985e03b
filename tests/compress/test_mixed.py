"""Types by harm: the budget holds, the harms are measured, and little is lost to greed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from miudo.compress.quantize.gptq import Rounding
from miudo.compress.quantize.importance import ImportanceRounding
from miudo.compress.quantize.mixed import Choice, MixedTypes, cheapest_harm, measure_harm
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError
from miudo.formats.blocks import encode, to_f32
from miudo.tensors import DType

Make = Callable[[str], Decoder]
TYPES = (DType.Q8_0, DType.Q5_0, DType.Q4_0)


def drawn(seed: int) -> dict[str, list[Choice]]:
    """Five tensors; harm falls with bytes, by tensors' own amounts."""
    rng = np.random.default_rng(seed)
    choices = {}
    for i in range(5):
        size, harm = int(rng.integers(50, 400)), float(rng.exponential())
        choices[f"t{i}"] = [
            Choice(dtype, int(size * bits), harm * 4.0**-bits)
            for dtype, bits in zip(TYPES, (8.5, 5.5, 4.5), strict=True)
        ]
    return choices


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_fits_and_is_near_the_best_of_all(seed: int) -> None:
    choices = drawn(seed)
    smallest, largest = (
        sum(f(c.size_bytes for c in some) for some in choices.values()) for f in (min, max)
    )
    for budget in np.linspace(smallest, largest, 7).astype(int):
        taken = cheapest_harm(choices, int(budget))
        assert sum(c.size_bytes for c in taken.values()) <= budget
        harm = sum(c.harm for c in taken.values())
        fits = [
            sum(c.harm for c in every)
            for every in itertools.product(*choices.values())
            if sum(c.size_bytes for c in every) <= budget
        ]
        allowed = max(c.harm for some in choices.values() for c in some)
        assert min(fits) <= harm <= min(fits) + allowed


def test_a_budget_that_nothing_fits_is_refused() -> None:
    with pytest.raises(ConfigError, match="weights take at least"):
        cheapest_harm(drawn(0), 10)


def test_harms_are_the_divergence_of_one_rounded_tensor(tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny("llama")
    harms = measure_harm(decoder, batches, TYPES)
    name = "layers.1.mlp.down.weight"
    weighed = ImportanceRounding().calibrate(decoder, batches)
    work = tiny("llama")
    with torch.no_grad():
        weight = dict(work.named_parameters())[name]
        stored = encode(weight.numpy(force=True), DType.Q4_0, weighed[name])
        weight.copy_(torch.from_numpy(to_f32(stored)))
        p, q = (
            torch.cat([m.logits(m(ids)).double().log_softmax(-1) for ids in batches])
            for m in (decoder, work)
        )
    (choice,) = [c for c in harms[name] if c.dtype is DType.Q4_0]
    assert choice.harm == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=0.05)
    assert choice.size_bytes == stored.data.nbytes
    assert [c.dtype for c in harms["norm.weight"]] == [DType.F32]
    for a, b in zip(decoder.parameters(), tiny("llama").parameters(), strict=True):
        assert torch.equal(a, b)


def test_rows_that_fit_no_blocks_have_one_choice_for_two_types(
    tiny: Make, batches: list[Tensor]
) -> None:
    harms = measure_harm(tiny("llama"), batches, (DType.Q5_0, DType.Q4_K, DType.Q4_0))
    found = [c.dtype for c in harms["layers.0.mlp.up.weight"]]
    assert found == [DType.Q5_0, DType.Q4_0]  # Q4_K becomes Q5_0 at 64 values a row


def test_a_mixed_model_keeps_its_budget_and_says_what_is_in_it(
    tiny: Make, batches: list[Tensor]
) -> None:
    decoder = tiny("llama")
    names = tuple(str(dtype) for dtype in TYPES)
    method = MixedTypes(max_bytes=100_000, types=names, rounding=Rounding.IMPORTANCE)
    stored, report = method.store(decoder, method.calibrate(decoder, batches))
    size = sum(t.data.nbytes for t in stored.values())
    assert 80_000 < size <= 100_000
    assert size == report.bytes_after
    assert len({t.dtype for t in stored.values()} & set(TYPES)) > 1
    counted = [int(note.split(", ")[1].split()[0]) for note in report.notes if " tensors, " in note]
    assert sum(counted) == size


def test_a_size_that_nothing_fits_is_refused_before_anything_is_measured(
    tiny: Make, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = tiny("llama")
    method = MixedTypes(max_bytes=10_000, types=("Q4_0",), rounding=Rounding.IMPORTANCE)
    statistics = method.calibrate(decoder, batches)
    monkeypatch.setattr("miudo.compress.quantize.mixed.measure_harm", pytest.fail)
    with pytest.raises(ConfigError, match=r"weights take at least \d+ bytes, 10000 are allowed"):
        method.store(decoder, statistics)
