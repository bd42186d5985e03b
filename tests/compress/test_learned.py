"""Learned rounding never ends worse than it began, and stays between neighbouring steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from miudo.compress.quantize.learned import LearnedRounding, Steps, learn_block
from miudo.compress.quantize.plan import importance, squared_error
from miudo.compress.walk import walk
from miudo.decoder.decoder import Decoder
from miudo.formats.blocks import encode, to_f32
from miudo.formats.grid import codes_of, grid_of, with_codes
from miudo.tensors import DType, StoredTensor

Make = Callable[[str], Decoder]
TYPES = (DType.Q4_0, DType.Q4_1, DType.Q5_0, DType.Q8_0, DType.Q4_K, DType.Q6_K)


def weight_of(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(2)) * 0.1


@pytest.mark.parametrize("dtype", TYPES)
def test_no_shift_is_what_the_search_gave(dtype: DType) -> None:
    weight = weight_of(8, 256)
    stored = encode(weight.numpy(), dtype, np.ones(256, dtype=np.float32))
    steps = Steps(weight, stored)
    np.testing.assert_array_equal(steps.codes(), codes_of(stored))
    np.testing.assert_allclose(steps.values().detach().numpy(), to_f32(stored), atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_shift_goes_to_the_next_step_at_most_and_the_codes_say_so(dtype: DType) -> None:
    weight = weight_of(8, 256)
    weight[3, 10:20] = 0
    stored = encode(weight.numpy(), dtype, np.ones(256, dtype=np.float32))
    steps = Steps(weight, stored)
    out = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        (steps.values() * out).sum().backward()
        steps.move(0.1)
    made = with_codes(stored, steps.codes())
    np.testing.assert_allclose(steps.values().detach().numpy(), to_f32(made), atol=1e-6)
    grid = grid_of(stored)
    off = np.abs(to_f32(made) - to_f32(stored))
    assert (off <= np.abs(grid.scale) * 1.0001).all()
    assert (off > 0).mean() > 0.2
    zero = to_f32(stored) == 0
    assert (to_f32(made)[(weight.numpy() == 0) & zero] == 0).all()
    if dtype is DType.Q8_0:
        assert steps.codes().min() >= 1  # -128 is no number of its


def test_the_gradient_is_that_of_the_values_themselves() -> None:
    weight = weight_of(4, 32)
    stored = encode(weight.numpy(), DType.Q4_0)
    steps = Steps(weight, stored)
    (steps.values() * 3.0).sum().backward()
    assert steps.shift.grad is not None
    torch.testing.assert_close(
        steps.shift.grad, 3.0 * torch.from_numpy(grid_of(stored).scale), rtol=1e-5, atol=0
    )


def started(decoder: Decoder, batches: list[Tensor]) -> tuple[object, dict[str, StoredTensor]]:
    station = next(walk(decoder, batches))
    grams = station.grams()
    start = {
        name: encode(w.detach().numpy(), DType.Q4_0, importance(grams[name]))
        for name, w in station.weights.items()
    }
    return station, start


def test_a_block_errs_less_and_what_is_returned_has_that_error(
    tiny: Make, batches: list[Tensor]
) -> None:
    station, start = started(tiny("llama"), batches)
    target = station.outputs()  # type: ignore[attr-defined]
    made, first, least = learn_block(station, start, target, 60)  # type: ignore[arg-type]

    def error(stored: dict[str, StoredTensor]) -> float:
        weights = {name: torch.from_numpy(to_f32(t)) for name, t in stored.items()}
        return squared_error(station, weights, target)  # type: ignore[arg-type]

    assert first == pytest.approx(error(start), rel=1e-4)
    assert least == pytest.approx(error(made), rel=1e-4)
    assert least < 0.9 * first


def test_steps_that_only_harm_leave_the_start(
    tiny: Make, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Steps.move
    monkeypatch.setattr(Steps, "move", lambda self, rate: move(self, -0.5))
    station, start = started(tiny("llama"), batches)
    made, first, least = learn_block(station, start, station.outputs(), 10)  # type: ignore[arg-type, attr-defined]
    assert least == first
    for name, stored in start.items():
        np.testing.assert_array_equal(made[name].data, stored.data)


def test_a_block_makes_up_for_those_before_it(tiny: Make, batches: list[Tensor]) -> None:
    """The target is the whole model's: with the rounded block's own it could not."""
    decoder = tiny("llama-untied")
    method = LearnedRounding(DType.Q4_0, steps=40)
    made, report = method.apply(decoder, method.calibrate(decoder, batches))
    assert "learning took" in report.notes[0]
    hidden = []
    for model in (decoder, made):
        with torch.no_grad():
            hidden.append(torch.cat([model(ids) for ids in batches]))
    plain, _ = LearnedRounding(DType.Q4_0, steps=1).apply(
        decoder, LearnedRounding().calibrate(decoder, batches)
    )
    with torch.no_grad():
        hidden.append(torch.cat([plain(ids) for ids in batches]))
    errors = [float((h - hidden[0]).square().sum()) for h in hidden[1:]]
    assert errors[0] < errors[1]


def test_a_type_without_equal_steps_is_left_as_it_began(tiny: Make, batches: list[Tensor]) -> None:
    station = next(walk(tiny("llama"), batches))
    start = {n: encode(w.detach().numpy(), DType.IQ4_NL) for n, w in station.weights.items()}
    for parameter in station.module.parameters():  # as of a model whose norms have no gain
        parameter.requires_grad_(False)
    made, first, least = learn_block(station, start, station.outputs(), steps=8)
    assert first == least
    assert made == start
