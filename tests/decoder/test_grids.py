"""Grids in PyTorch: what training rounds to is, to the bit, what a file's reader gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from miudo.decoder.grids import TRAINABLE, Grid, Held, check_trainable
from miudo.errors import ConfigError
from miudo.formats.blocks import encode, to_f32
from miudo.formats.grid import grid_of
from miudo.tensors import DType

# Rules that only take the nearest value there is on their own scales, ties aside.
SAME_RULE = (DType.Q8_0, DType.Q4_0, DType.Q4_1, DType.Q5_0, DType.Q5_1)


def normal(dtype: DType, blocks: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(blocks, dtype.block, generator=generator)


def begun(dtype: DType, x: Tensor) -> tuple[Grid, Held, Tensor]:
    """The grid of x's own file, its scales as they are, and x in parts."""
    grid = Grid(encode(x.numpy(), dtype))
    return grid, grid.hold(grid.d, grid.m), x.view(-1, grid.part)


@pytest.mark.parametrize("dtype", TRAINABLE)
@given(
    exponent=st.integers(-30, 13),
    seed=st.integers(0, 1 << 16),
    factor=st.floats(0.2, 4.0),
    shift=st.floats(-3.0, 3.0),
)
@settings(max_examples=10, deadline=None)
def test_a_file_holds_to_the_bit_what_was_rounded(
    dtype: DType, exponent: int, seed: int, factor: float, shift: float
) -> None:
    """Whatever became of the scales: tiny, huge, far from what the values need."""
    x = normal(dtype, 3, seed) * 2.0**exponent
    x[1] = 0.0
    grid, _, parts = begun(dtype, x)
    held = grid.hold(grid.d * factor, None if grid.m is None else grid.m + shift * grid.d)
    rounded = grid.values(parts, held).view_as(x)
    stored = grid.store(parts, held)
    assert stored.dtype is dtype
    np.testing.assert_array_equal(to_f32(stored), rounded.numpy())


@pytest.mark.parametrize("dtype", TRAINABLE)
def test_scales_begin_as_the_file_has_them(dtype: DType) -> None:
    x = normal(dtype, 4, 5)
    grid, held, parts = begun(dtype, x)
    stored = grid_of(encode(x.numpy(), dtype))
    np.testing.assert_array_equal(held.scale.expand_as(parts), stored.scale.reshape(parts.shape))
    if held.offset is not None:
        offset = held.offset.expand_as(parts)
        np.testing.assert_array_equal(offset, stored.offset.reshape(parts.shape))
    # What the file holds is rounded to itself: nothing is lost before training begins.
    file = torch.from_numpy(to_f32(encode(x.numpy(), dtype)).copy()).view_as(parts)
    np.testing.assert_array_equal(grid.values(file, held), file)


@pytest.mark.parametrize("dtype", TRAINABLE)
def test_rounding_takes_the_nearest_value_there_is(dtype: DType) -> None:
    grid, held, parts = begun(dtype, normal(dtype, 2, 3))
    stored = grid_of(encode(parts.numpy().reshape(2, -1), dtype))
    levels = stored.levels[1:] if dtype is DType.Q8_0 else stored.levels
    every = stored.scale[..., None] * levels + stored.offset[..., None]  # rows I levels
    x = parts.numpy().reshape(2, -1)
    least = np.abs(every - x[..., None]).min(-1)
    found = np.abs(grid.values(parts, held).numpy().reshape(2, -1) - x)
    np.testing.assert_allclose(found, least, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", SAME_RULE)
def test_where_the_files_rule_is_the_same_its_values_are(dtype: DType) -> None:
    x = normal(dtype, 64, 7)
    grid, held, parts = begun(dtype, x)
    ours = grid.values(parts, held).view_as(x)
    theirs = torch.from_numpy(to_f32(encode(x.numpy(), dtype)))
    different = ours != theirs
    # Theirs divides by the scale before it is float16: close to halves a neighbour is taken.
    assert float(different.float().mean()) < 0.01
    assert bool(((ours - x).abs() <= (theirs - x).abs() + 1e-6).all())


@pytest.mark.parametrize("dtype", TRAINABLE)
def test_values_beyond_the_levels_are_told_apart(dtype: DType) -> None:
    grid, held, _ = begun(dtype, normal(dtype, 1, 9))
    ends = torch.tensor([grid.low - 1.0, grid.low - 0.4, grid.high + 0.4, grid.high + 1.0])
    at = ends * held.scale if held.offset is None else ends * held.scale + held.offset
    usable = held.scale[:, 0] != 0  # a part whose step is 0 has one value: nothing is beyond it
    beyond = grid.beyond(at, held)[usable]
    assert len(beyond)
    assert bool((beyond == torch.tensor([True, False, False, True])).all())


def test_types_without_a_float16_scale_are_refused() -> None:
    assert DType.MXFP4 not in TRAINABLE
    assert {DType.Q2_K, DType.Q3_K, DType.Q4_0, DType.IQ4_NL, DType.TQ2_0} <= set(TRAINABLE)
    with pytest.raises(ConfigError, match=r"dtype is MXFP4.*Known are"):
        check_trainable("dtype", DType.MXFP4)
