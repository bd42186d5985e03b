"""GPTQ rounds as a column-by-column solver with explicit inverses does, and never worse."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from miudo.compress.hessian import invert, output_error
from miudo.compress.quantize.gptq import GPTQ, Outcome, gptq, round_matrix
from miudo.compress.quantize.importance import ImportanceRounding
from miudo.compress.quantize.nearest import NearestRounding
from miudo.compress.quantize.refit import refit
from miudo.compress.station import Gram
from miudo.compress.walk import walk
from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, ConfigError
from miudo.formats.blocks import encode, to_f32
from miudo.formats.grid import Grid, codes_of, grid_of
from miudo.tensors import DType

Make = Callable[[str], Decoder]
BLOCKS_32 = (DType.Q4_0, DType.Q4_1, DType.Q5_0, DType.Q5_1, DType.Q8_0)
BLOCKS_256 = (DType.Q4_K, DType.Q6_K)


def inputs(columns: int, rows: int = 600, seed: int = 0) -> Tensor:
    """Correlated inputs of unequal size, as a model's are."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, columns, generator=generator) @ torch.randn(
        columns, columns, generator=generator
    )
    return mixed * torch.rand(columns, generator=generator).exp() / columns**0.5


def gram_of(x: Tensor) -> Gram:
    gram = Gram(torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64))
    gram.add(x)
    return gram


def weight_of(rows: int, columns: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 0.1


def brute_force(weight: Tensor, grid: Grid, outer: Tensor, order: Tensor, damping: float) -> Tensor:
    """OBS with the inverse of what is left computed anew at each column (Frantar et al. 2023)."""
    work = weight.double().clone()
    hessian = outer.clone()
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    left = order.tolist()
    while left:
        j = left[0]
        inverse = torch.linalg.inv(hessian[left][:, left])
        column = grid[:, j]
        levels = column.levels[None] * column.scale[:, None] + column.offset[:, None]
        at = np.abs(levels - work[:, j].numpy()[:, None]).argmin(axis=1)
        rounded = torch.from_numpy(np.take_along_axis(levels, at[:, None], axis=1)[:, 0]).double()
        error = work[:, j] - rounded
        work[:, left] -= error[:, None] * inverse[0] / inverse[0, 0]
        work[:, j] = rounded
        left = left[1:]
    return work


@pytest.mark.parametrize("dtype", [DType.Q4_0, DType.Q4_1, DType.IQ4_NL])
@pytest.mark.parametrize("in_order", [True, False])
def test_the_values_are_those_of_a_brute_force_solver(dtype: DType, in_order: bool) -> None:
    weight, gram = weight_of(12, 160), gram_of(inputs(160))
    # Codes of 0 throughout: the scales are what matters here.
    grid = grid_of(encode(weight.numpy(), DType.Q4_0 if dtype is DType.IQ4_NL else dtype))
    if dtype is DType.IQ4_NL:  # any grid will do, levels unevenly apart too
        levels = np.array([-9, -6, -4, -2, -1, 0, 1, 3, 5, 8], dtype=np.float32)
        grid = Grid.of(levels, grid.scale, grid.offset)
    order = torch.arange(160)
    if not in_order:
        order = torch.argsort(gram.outer.diagonal(), descending=True)
    factor = invert(gram.outer[order][:, order], damping=0.01, where="w").factor
    found = grid.values(gptq(weight, grid, factor, order))
    wanted = brute_force(weight, grid, gram.outer, order, 0.01).numpy()
    # A value halfway between two levels may go either way, and takes others of its row along.
    same = np.isclose(found, wanted, rtol=0, atol=1e-6).all(axis=1)
    assert same.mean() > 0.9


@pytest.mark.parametrize("dtype", [*BLOCKS_32, *BLOCKS_256])
def test_the_outputs_err_less_than_by_importance_and_that_less_than_by_nearest(
    dtype: DType,
) -> None:
    weight, x = weight_of(24, 512), inputs(512, rows=2000)
    gram = gram_of(x)
    squares = gram.mean_square.numpy().astype(np.float32)
    outcome = Outcome()
    made = round_matrix("w", weight, gram, dtype, outcome)
    assert made.dtype is dtype
    assert not outcome.kept
    nearest = to_f32(encode(weight.numpy(), dtype))
    weighed = to_f32(encode(weight.numpy(), dtype, squares))
    values = torch.from_numpy(to_f32(made))
    errors = [
        output_error(weight, torch.from_numpy(q), gram.outer) for q in (weighed, values.numpy())
    ]
    assert errors[1] < 0.8 * errors[0]
    assert outcome.after * gram.tokens == pytest.approx(errors[1])
    # What is minimised, and that it is the error of what the matrix gives.
    assert errors[1] == pytest.approx(
        float((x.double() @ (weight - values).double().T).square().sum())
    )
    sums = [(squares * (weight.numpy() - q) ** 2).sum() for q in (nearest, weighed)]
    assert sums[1] < sums[0]


@pytest.mark.parametrize("dtype", [*BLOCKS_32, *BLOCKS_256])
def test_a_refit_of_scales_errs_less_and_leaves_the_codes(dtype: DType) -> None:
    weight, gram = weight_of(8, 256), gram_of(inputs(256))
    start = encode(weight.numpy(), dtype)
    made = refit(weight.double().numpy(), start, gram.outer.numpy())
    np.testing.assert_array_equal(codes_of(made), codes_of(start))
    errors = [
        output_error(weight, torch.from_numpy(to_f32(stored)), gram.outer)
        for stored in (start, made)
    ]
    assert errors[1] < errors[0]
    again = refit(weight.double().numpy(), made, gram.outer.numpy())
    assert output_error(weight, torch.from_numpy(to_f32(again)), gram.outer) <= errors[1] * 1.0001


def test_a_refit_scale_is_the_least_squares_one() -> None:
    weight, x = weight_of(5, 32), inputs(32)
    start = encode(weight.numpy(), DType.Q4_0)
    made = refit(weight.double().numpy(), start, gram_of(x).outer.numpy())
    steps = codes_of(start).astype(np.float64) - 8
    for row in range(5):
        given = (x.double() @ torch.from_numpy(steps[row])).numpy()
        wanted = np.linalg.lstsq(given[:, None], (x.double() @ weight[row].double()).numpy())[0]
        assert grid_of(made).scale[row, 0] == pytest.approx(float(wanted[0]), rel=1e-3)


def test_columns_that_saw_nothing_are_rounded_as_if_alone() -> None:
    weight, x = weight_of(8, 128), inputs(128)
    x[:, 40:50] = 0
    gram = gram_of(x)
    made = round_matrix("w", weight, gram, DType.Q4_0, Outcome())
    steps = weight.numpy() / grid_of(made).scale + 8
    away = np.abs(codes_of(made) - steps.clip(0, 15))
    # The last word is the scales', which move by little.
    assert away[:, 40:50].max() < 0.55
    assert away.max() > 0.75


def test_rows_done_in_parts_are_those_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = weight_of(11, 256), gram_of(inputs(256, rows=1500))
    before = gram.outer.clone()
    whole = round_matrix("w", weight, gram, DType.Q4_K, Outcome())
    assert torch.equal(gram.outer, before)  # damped for a while
    monkeypatch.setattr("miudo.compress.quantize.gptq._ROWS", 4)
    parts = round_matrix("w", weight, gram, DType.Q4_K, Outcome())
    np.testing.assert_array_equal(parts.data, whole.data)


def test_zeros_of_a_pruned_matrix_stay_and_the_rest_makes_up_for_them() -> None:
    weight, gram = weight_of(16, 256), gram_of(inputs(256, rows=1500))
    pruned = weight.clone()
    pruned[torch.rand(weight.shape, generator=torch.Generator().manual_seed(4)) < 0.5] = 0
    outcome = Outcome()
    made = round_matrix("w", pruned, gram, DType.Q4_0, outcome)
    assert not outcome.kept
    assert (to_f32(made)[pruned.numpy() == 0] == 0).all()


def test_a_singular_hessian_is_damped_more_and_the_report_says_so() -> None:
    # One input direction only, and so small a damping that float64 does not see it.
    x = inputs(64)[:, :1] @ torch.ones(1, 64)
    outcome = Outcome()
    round_matrix("layers.0.x", weight_of(4, 64), gram_of(x), DType.Q4_0, outcome, damping=1e-17)
    assert outcome.damped
    assert "layers.0.x: damping 1e-17" in outcome.damped[0]


def test_where_gptq_errs_more_the_plain_rounding_is_kept_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def worst(weight: Tensor, *_: object) -> np.ndarray:
        return np.zeros(tuple(weight.shape), dtype=np.uint8)

    monkeypatch.setattr("miudo.compress.quantize.gptq.gptq", worst)
    weight, gram = weight_of(4, 64), gram_of(inputs(64))
    outcome = Outcome()
    made = round_matrix("w", weight, gram, DType.Q4_0, outcome)
    squares = gram.mean_square.numpy().astype(np.float32)
    np.testing.assert_array_equal(made.data, encode(weight.numpy(), DType.Q4_0, squares).data)
    assert any("better for w" in note for note in outcome.notes())


def test_inputs_come_from_rounded_predecessors(tiny: Make, batches: list[Tensor]) -> None:
    """Hessians of the full-precision pass are a known silent fault: recompute what must be."""
    decoder = tiny("llama-untied")
    method = GPTQ(propagation=0.0)
    stored, _ = method.store(decoder, method.calibrate(decoder, batches))
    work = tiny("llama-untied")
    with torch.no_grad():
        for name, value in work.named_parameters():
            if not name.startswith("layers.2.mlp.down") and not name.startswith("head"):
                value.copy_(torch.from_numpy(to_f32(stored[name])))
    last = next(itertools.islice(walk(work, batches), 2, None))
    name = "layers.2.mlp.down.weight"
    again = round_matrix(
        name, last.weights[name].detach(), last.grams()[name], DType.Q4_0, Outcome()
    )
    np.testing.assert_array_equal(again.data, stored[name].data)
    last = next(itertools.islice(walk(decoder, batches), 2, None))
    other = round_matrix(
        name, last.weights[name].detach(), last.grams()[name], DType.Q4_0, Outcome()
    )
    assert (other.data != stored[name].data).any()


def trained(steps: int = 60) -> tuple[Decoder, list[Tensor]]:
    """A decoder that has learned something, on rows with a rule: noise has nothing to lose."""
    config = ModelConfig.uniform(
        n_layers=2, d_model=64, n_heads=2, d_ff=128, vocab_size=64, max_positions=32
    )
    decoder = Decoder(config)
    decoder.initialise(5)
    generator = torch.Generator().manual_seed(9)
    starts = torch.randint(0, 64, (256, 1), generator=generator)
    strides = torch.randint(1, 8, (256, 1), generator=generator)
    rows = (starts + strides * torch.arange(24)) % 64
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    for step in range(steps):
        batch = rows[step * 16 % 256 :][:16]
        logits = decoder.logits(decoder(batch[:, :-1]))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return decoder, list(rows.split(32))


def test_a_whole_model_diverges_less_the_more_is_known() -> None:
    decoder, batches = trained()

    def divergence(made: Decoder) -> float:
        with torch.no_grad():
            p, q = (
                torch.cat([m.logits(m(ids)).log_softmax(-1) for ids in batches])
                for m in (decoder, made)
            )
        return float((p.exp() * (p - q)).sum(-1).mean())

    nearest = divergence(NearestRounding(DType.Q4_0).apply(decoder)[0])
    found = {}
    for method in (ImportanceRounding(), GPTQ()):
        made, report = method.apply(decoder, method.calibrate(decoder, batches))
        found[method.name] = divergence(made)
        assert report.bits_per_weight < 5
    assert found["importance"] < nearest
    assert found["gptq"] < 0.7 * nearest


def test_a_type_or_a_damping_without_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="damping"):
        GPTQ(damping=0.0)
    with pytest.raises(ConfigError, match="dtype is F32"):
        GPTQ(DType.F32)


def test_a_dead_matrix_is_refused_by_name(tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny("llama")
    with torch.no_grad():
        decoder.layers[1].attn.v.weight.zero_()
    with pytest.raises(CheckFailedError, match=r"layers\.1\.attn\.o\.weight"):
        GPTQ().apply(decoder, GPTQ().calibrate(decoder, batches))
