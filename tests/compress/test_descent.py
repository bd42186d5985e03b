"""A pass over rounded columns is exact coordinate descent, and never errs more."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from miudo.compress.quantize.descent import descend
from miudo.formats.blocks import encode
from miudo.formats.grid import Grid, codes_of, grid_of
from miudo.tensors import DType

Floats = npt.NDArray[np.float64]


def problem(rows: int, columns: int, dtype: DType) -> tuple[Floats, Grid, npt.NDArray[np.uint8]]:
    draw = np.random.default_rng(rows + columns)
    weight = draw.standard_normal((rows, columns)).astype(np.float32) * np.float32(0.1)
    stored = encode(weight, dtype)
    return weight.astype(np.float64), grid_of(stored), codes_of(stored)


def hessian_of(columns: int) -> Floats:
    draw = np.random.default_rng(columns)
    x = draw.standard_normal((4 * columns, columns)) @ draw.standard_normal((columns, columns))
    return x.T @ x / len(x)


def error(weight: Floats, values: Floats, hessian: Floats) -> Floats:
    """Of every row."""
    left = weight - values
    return np.einsum("oi,ij,oj->o", left, hessian, left)


@pytest.mark.parametrize("dtype", [DType.Q4_0, DType.Q4_1, DType.IQ4_NL])
def test_each_column_takes_the_level_that_errs_least(dtype: DType) -> None:
    weight, grid, codes = problem(6, 160, dtype)  # more than one block of columns
    hessian = hessian_of(160)
    values = grid.values(codes).astype(np.float64)
    for j in range(160):  # every level of every number tried, the error computed whole
        tried = []
        for level in grid.levels:
            changed = values.copy()
            changed[:, j] = level * grid.scale[:, j] + grid.offset[:, j]
            tried.append(error(weight, changed, hessian))
        best = np.argmin(tried, axis=0)
        values[:, j] = grid.levels[best] * grid.scale[:, j] + grid.offset[:, j]
    found, changed = descend(weight, grid, codes, hessian, held=np.zeros(weight.shape, dtype=bool))
    assert changed == (found != codes).sum() > 0
    np.testing.assert_allclose(grid.values(found), values, rtol=0, atol=1e-6)


def test_passes_err_less_and_less_until_nothing_moves() -> None:
    weight, grid, codes = problem(16, 256, DType.Q4_K)
    hessian, held = hessian_of(256), np.zeros(weight.shape, dtype=bool)
    errors = [error(weight, grid.values(codes).astype(np.float64), hessian)]
    for _ in range(200):
        codes, changed = descend(weight, grid, codes, hessian, held=held)
        errors.append(error(weight, grid.values(codes).astype(np.float64), hessian))
        assert (errors[-1] <= errors[-2] * (1 + 1e-9)).all()
        if not changed:
            break
    assert not changed
    assert errors[-1].sum() < 0.7 * errors[0].sum()


def test_held_codes_and_columns_without_inputs_stay() -> None:
    weight, grid, codes = problem(8, 128, DType.Q4_0)
    hessian, held = hessian_of(128), np.zeros(weight.shape, dtype=bool)
    held[:, ::3] = True
    hessian[5] = hessian[:, 5] = 0.0
    found, _ = descend(weight, grid, codes, hessian, held=held)
    np.testing.assert_array_equal(found[:, ::3], codes[:, ::3])
    np.testing.assert_array_equal(found[:, 5], codes[:, 5])
    assert (found != codes).any()
