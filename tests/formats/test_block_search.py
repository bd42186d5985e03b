"""Searched scales: beside every scale of a fine ladder, beside their neighbours, and weighted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from miudo.formats.block_codec import steps_from
from miudo.formats.block_search import Levels, fit_offset, fit_scale
from miudo.formats.blocks import CODECS, encode, to_f32
from miudo.formats.grid import grid_of
from miudo.tensors import DType, StoredTensor

Floats = npt.NDArray[np.float32]
SEARCHED = (*tuple(t for t, codec in CODECS.items() if codec.fit and t.block == 256), DType.IQ4_NL)
TABLE = CODECS[DType.IQ4_NL].levels


def noise(*shape: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def uneven(inputs: int, seed: int = 2) -> Floats:
    return np.random.default_rng(seed).lognormal(0, 1.5, inputs).astype(np.float32)


def error(values: Floats, tensor: StoredTensor, importance: Floats | float = 1.0) -> float:
    off = (to_f32(tensor) - values).astype(np.float64)
    return float((importance * off**2).sum())


def nearest(x: Floats, scale: Floats, levels: Floats) -> Floats:
    """What x [w] is on the grids of scales [s]: [s, w]."""
    every = scale[:, None] * levels  # [s, k]
    at = np.abs(x[None, :, None] - every[:, None, :]).argmin(axis=2)
    return np.take_along_axis(every, at, axis=1)


# Of many levels far more scales are worth a try than are tried; the error is small then.
@pytest.mark.parametrize(
    ("levels", "allowed"), [(steps_from(-4, 8), 1.1), (steps_from(-32, 64), 1.25), (TABLE, 1.1)]
)
def test_a_scale_is_about_as_good_as_the_best_of_a_fine_ladder(
    levels: Floats, allowed: float
) -> None:
    parts, weight = noise(24, 16), uneven(24 * 16).reshape(24, 16)
    found = fit_scale(parts, weight, Levels(levels))
    ours, best = 0.0, 0.0
    for x, w, scale in zip(parts, weight, found, strict=True):
        reach = np.abs(x).max() / np.abs(levels).max()
        ladder = np.linspace(-1.6, 1.6, 1601, dtype=np.float32) * reach
        best += float((w * (nearest(x, ladder, levels) - x) ** 2).sum(axis=1).min())
        one = nearest(x, scale[None], levels)
        ours += float((w * (one - x) ** 2).sum())
    assert ours < allowed * best


@pytest.mark.parametrize("apart", [0.0, 1e-3, 1e-2, 0.1, 1.0])
def test_values_that_are_nearly_alike_get_no_scale_from_noise(apart: float) -> None:
    """Their codes are nearly alike too: sums of them hardly tell scale and offset apart."""
    x = 1 + np.float32(apart) * noise(2000, 32)
    weight = np.exp(2 * noise(2000, 32, seed=3))
    levels = Levels(steps_from(0, 4))

    def errs(scale: Floats, offset: Floats) -> npt.NDArray[np.float64]:
        step, below = (part[:, None].astype(np.float64) for part in (scale, offset))
        q = np.rint((x + below) / np.where(step > 0, step, 1)).clip(0, 3)
        return np.asarray((weight * (step * q - below - x) ** 2).sum(axis=1))

    high, low = x.max(axis=1), np.minimum(x.min(axis=1), 0)
    plain = errs((high - low) / np.float32(3), -low)
    size = (weight * x**2).sum(axis=1)
    found = errs(*fit_offset(x, weight, levels))
    assert (found <= 1.01 * plain + 1e-6 * size).all()


def test_a_scale_and_offset_are_about_as_good_as_the_best_of_a_net() -> None:
    parts, weight = noise(6, 16) + 0.5, uneven(96).reshape(6, 16)
    levels = steps_from(0, 4)
    scales, offsets = fit_offset(parts, weight, Levels(levels))
    ours, best = 0.0, 0.0
    for x, w, scale, offset in zip(parts, weight, scales, offsets, strict=True):
        low, high = min(float(x.min()), 0.0), float(x.max())
        ladder = (np.linspace(0.3, 1.1, 161) * (high - low) / 3).astype(np.float32)
        errors = [
            (w * (nearest(x + down, ladder, levels) - down - x) ** 2).sum(axis=1).min()
            for down in np.linspace(0, -1.2 * low, 61).astype(np.float32)
        ]
        best += float(min(errors))
        one = nearest(x + offset, scale[None], levels) - offset
        ours += float((w * (one - x) ** 2).sum())
        assert offset >= 0
    assert ours < 1.15 * best


def test_the_ternary_scale_is_the_best_there_is() -> None:
    values, weight = noise(12, 256), uneven(256)
    for x in values:
        ours = error(x[None], encode(x[None], DType.TQ2_0, weight), weight)
        ladder = np.linspace(0.05, 1, 4000, dtype=np.float32) * np.abs(x).max()
        best = (weight * (nearest(x, ladder, steps_from(-1, 3)) - x) ** 2).sum(axis=1).min()
        assert ours < best * 1.001  # the scale is float16


def test_ternary_weights_come_back_as_they_were() -> None:
    """What BitNet's training leaves: one scale a matrix, and a half or none of them zeros."""
    signs = np.random.default_rng(6).integers(-1, 2, (8, 512)).astype(np.float32)
    values = signs * np.float32(0.0371093750)
    for dtype in (DType.TQ1_0, DType.TQ2_0):
        np.testing.assert_array_equal(to_f32(encode(values, dtype)), values)


@pytest.mark.parametrize("dtype", SEARCHED)
def test_importance_makes_the_weighted_error_smaller(dtype: DType) -> None:
    values, importance = noise(24, 512), uneven(512)
    plain, weighted = encode(values, dtype), encode(values, dtype, importance)
    assert error(values, weighted, importance) < 0.97 * error(values, plain, importance)
    assert error(values, weighted) > error(values, plain)  # nothing is for nothing


@pytest.mark.parametrize("dtype", SEARCHED)
def test_importance_goes_by_column_whatever_the_chunks(dtype: DType) -> None:
    """Rows of 768 and chunks of 65536 values do not begin together."""
    values, importance = noise(200, 768), uneven(768)
    whole = encode(values, dtype, importance).data.reshape(200, -1)
    for row in (0, 84, 85, 86, 199):  # the first chunk ends in row 85
        alone = encode(values[row : row + 1], dtype, importance)
        np.testing.assert_array_equal(whole[row], alone.data)
    louder = encode(values[:4], dtype, importance * np.float32(4))
    np.testing.assert_array_equal(louder.data.reshape(4, -1), whole[:4])


@pytest.mark.parametrize("dtype", SEARCHED)
def test_an_input_that_never_came_costs_the_others_nothing(dtype: DType) -> None:
    values, importance = noise(16, 256), uneven(256)
    importance[::2] = 0
    stored = encode(values, dtype, importance)
    assert np.isfinite(to_f32(stored)).all()
    plain = encode(values, dtype)
    assert error(values, stored, importance) < error(values, plain, importance)
    # Nor is it given up: its values still come back as well as its part's grid can hold them.
    grid = grid_of(stored)
    np.testing.assert_allclose(grid.values(grid.nearest(values)), to_f32(stored), atol=1e-6)


_PARTS = {DType.Q2_K: (0, 16), DType.Q6_K: (192, 16)}


@pytest.mark.parametrize("dtype", _PARTS)
def test_no_other_step_of_a_parts_scale_would_do_better(dtype: DType) -> None:
    values, importance = noise(8, 256), uneven(256)
    stored = encode(values, dtype, importance)
    found = error(values, stored, importance)
    start, count = _PARTS[dtype]
    for part in range(count):
        for move in (-1, 1):
            data = stored.data.reshape(8, -1).copy()
            step = data[:, start + part].astype(np.int16)
            moved = np.where(dtype is DType.Q2_K, step & 15, step.astype(np.int8)) + move
            kept = (moved >= 0) & (moved < 16) if dtype is DType.Q2_K else np.abs(moved) < 128
            new = (step & 0xF0 | moved) if dtype is DType.Q2_K else moved & 0xFF
            data[:, start + part] = np.where(kept, new, step).astype(np.uint8)
            tried = StoredTensor(dtype, stored.shape, data.reshape(-1))
            grid = grid_of(tried)
            off = grid.values(grid.nearest(values)) - values
            assert (importance * off.astype(np.float64) ** 2).sum() >= found * (1 - 1e-5)
