"""The grid of a type is what its reader reads, and codes on it go into a file and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from miudo.errors import ConfigError
from miudo.formats.blocks import WRITABLE, encode, to_f32
from miudo.formats.grid import codes_of, grid_of, with_codes
from miudo.tensors import DType, StoredTensor

BLOCKS = tuple(t for t in DType if t.block > 1 and not t.sparse)
ENCODED = tuple(t for t in WRITABLE if t.block > 1 and not t.sparse)
Noise = Callable[..., StoredTensor]


@pytest.mark.parametrize("dtype", BLOCKS)
def test_the_grid_and_the_codes_are_the_values_to_the_bit(
    dtype: DType, noise_blocks: Noise
) -> None:
    tensor = noise_blocks(dtype, (20, 2 * dtype.block))
    codes = np.minimum(codes_of(tensor), len(grid_of(tensor).levels) - 1)
    tensor = with_codes(tensor, codes)
    np.testing.assert_array_equal(grid_of(tensor).values(codes_of(tensor)), to_f32(tensor))


@pytest.mark.parametrize("dtype", BLOCKS)
def test_other_codes_are_read_back_on_the_same_grid(dtype: DType, noise_blocks: Noise) -> None:
    tensor = noise_blocks(dtype, (20, 2 * dtype.block))
    grid = grid_of(tensor)
    codes = np.random.default_rng(3).integers(0, len(grid.levels), tensor.shape, dtype=np.uint8)
    other = with_codes(tensor, codes)
    np.testing.assert_array_equal(codes_of(other), codes)
    np.testing.assert_array_equal(to_f32(other), grid.values(codes))
    np.testing.assert_array_equal(grid_of(other).scale, grid.scale)
    assert not np.shares_memory(other.data, tensor.data)


@pytest.mark.parametrize("dtype", BLOCKS)
def test_the_nearest_code_is_that_of_all_tried(dtype: DType, noise_blocks: Noise) -> None:
    tensor = noise_blocks(dtype, (8, dtype.block))
    grid = grid_of(tensor)
    values = np.random.default_rng(4).uniform(-1.2, 1.2, tensor.shape).astype(np.float32)
    values = values * np.abs(grid.levels).max() * grid.scale + grid.offset
    every = grid.levels * grid.scale[..., None] + grid.offset[..., None]
    off = np.abs(every - values[..., None])
    chosen = np.abs(grid.values(grid.nearest(values)) - values)
    np.testing.assert_allclose(chosen, off.min(axis=-1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", ENCODED)
def test_rounding_to_a_written_grid_is_no_worse_than_the_writer(dtype: DType) -> None:
    values = np.random.default_rng(5).standard_normal((16, 512)).astype(np.float32)
    stored = encode(values, dtype)
    grid = grid_of(stored)
    mine = grid.values(grid.nearest(values)) - values
    assert np.square(mine).sum() <= np.square(to_f32(stored) - values).sum() * (1 + 1e-6)
    column = grid[:, 7:9]
    np.testing.assert_array_equal(column.nearest(values[:, 7:9]), grid.nearest(values)[:, 7:9])


def test_what_has_no_grid_and_codes_without_a_level_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"F16 has no grid.*Q4_0"):
        grid_of(encode(np.zeros((1, 32), np.float32), DType.F16))
    stored = encode(np.zeros((1, 32), np.float32), DType.Q4_0)
    with pytest.raises(ConfigError, match=r"up to 16.*codes below 16"):
        with_codes(stored, np.full((1, 32), 16, np.uint8))
    with pytest.raises(ConfigError, match="of shape"):
        with_codes(stored, np.zeros((32,), np.uint8))


@pytest.mark.parametrize("wrong", [np.ones(31), np.zeros(32), -np.ones(32), np.full(32, np.nan)])
def test_what_weighs_no_columns_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="importance"):
        encode(np.zeros((1, 32), np.float32), DType.Q4_0, wrong.astype(np.float32))
