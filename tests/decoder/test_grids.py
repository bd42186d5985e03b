"""Block types in PyTorch: what training rounds to is what a file's reader gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from miudo.decoder.grids import GRIDS, Grid, Held, Scales
from miudo.formats.block_scales import blocks_of
from miudo.formats.blocks import CODECS, encode, to_f32
from miudo.tensors import DType, StoredTensor


def normal(dtype: DType, blocks: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(blocks, dtype.block, generator=generator)


def in_parts(x: Tensor, grid: Grid) -> Tensor:
    return x.view(-1, grid.part)


def some_scales(dtype: DType, x: Tensor) -> Scales:
    return GRIDS[dtype].scales(encode(x.numpy(), dtype))


def in_a_file(dtype: DType, x: Tensor, held: Held) -> StoredTensor:
    codes = GRIDS[dtype].codes(in_parts(x, GRIDS[dtype]), held).view(-1, dtype.block).numpy()
    d, m, steps, lower = (
        None if t is None else t.numpy() for t in (held.d, held.m, held.scale_steps, held.offset_steps)
    )
    assert d is not None
    return StoredTensor(dtype, tuple(x.shape), blocks_of(dtype, codes, d, m, steps, lower))


@pytest.mark.parametrize("dtype", GRIDS)
@given(
    exponent=st.integers(-30, 14),
    seed=st.integers(0, 1 << 16),
    factor=st.floats(0.2, 4.0),
    shift=st.floats(-3.0, 3.0),
)
@settings(max_examples=12, deadline=None)
def test_a_file_holds_to_the_bit_what_was_rounded(
    dtype: DType, exponent: int, seed: int, factor: float, shift: float
) -> None:
    """Whatever scales are wished for: tiny, huge, far from what the values need."""
    x = normal(dtype, 3, seed) * 2.0**exponent
    x[1] = 0.0
    grid, wish = GRIDS[dtype], some_scales(dtype, x)
    offset = None if wish.offset is None else wish.offset + shift * wish.scale
    held = grid.hold(Scales(wish.scale * factor, offset))
    rounded = grid.values(in_parts(x, grid), held).view_as(x)
    np.testing.assert_array_equal(to_f32(in_a_file(dtype, x, held)), rounded.numpy())


@pytest.mark.parametrize("dtype", GRIDS)
def test_rounding_takes_the_nearest_value_there_is(dtype: DType) -> None:
    x = normal(dtype, 2, 3)
    grid = GRIDS[dtype]
    held = grid.hold(some_scales(dtype, x))
    parts = in_parts(x, grid)
    all_there_is = torch.tensor(grid.levels) * held.scale  # m levels
    if held.offset is not None:
        all_there_is = all_there_is + held.offset
    least = (parts[:, :, None] - all_there_is[:, None, :]).abs().amin(2)
    found = (grid.values(parts, held) - parts).abs()
    torch.testing.assert_close(found, least, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [DType.Q8_0, DType.Q4_0, DType.Q5_0, DType.Q4_1, DType.Q5_1])
def test_scales_of_a_file_stay_what_they_are(dtype: DType) -> None:
    x = normal(dtype, 4, 5)
    stored = encode(x.numpy(), dtype)
    held = GRIDS[dtype].hold(GRIDS[dtype].scales(stored))
    scale, offset = CODECS[dtype].grid(stored.data.view(CODECS[dtype].fields))
    np.testing.assert_array_equal(held.scale.numpy(), scale)
    if offset is not None:
        assert held.offset is not None
        np.testing.assert_array_equal(held.offset.numpy(), offset)
    # What a writer rounded is rounded to itself, so that nothing is lost before training begins.
    again = torch.from_numpy(to_f32(stored).copy())
    np.testing.assert_array_equal(
        GRIDS[dtype].values(in_parts(again, GRIDS[dtype]), held).view_as(again), again
    )


@pytest.mark.parametrize("dtype", [DType.Q8_0, DType.Q4_0])
def test_it_rounds_no_worse_than_the_files_own_rule_on_the_same_scales(dtype: DType) -> None:
    x = normal(dtype, 64, 7)
    stored = encode(x.numpy(), dtype)
    held = GRIDS[dtype].hold(GRIDS[dtype].scales(stored))
    ours = GRIDS[dtype].values(in_parts(x, GRIDS[dtype]), held).view_as(x)
    theirs = torch.from_numpy(to_f32(stored))
    assert bool(((ours - x).abs() <= (theirs - x).abs() + 1e-7).all())
    # The rules differ only in ties and in that theirs divides by the scale before it is float16.
    assert float((ours != theirs).float().mean()) < 0.01


@pytest.mark.parametrize("dtype", GRIDS)
def test_values_beyond_the_levels_are_told_apart(dtype: DType) -> None:
    grid = GRIDS[dtype]
    x = normal(dtype, 1, 9)
    held = grid.hold(some_scales(dtype, x))
    ends = torch.tensor([grid.low - 1.0, grid.low - 0.4, grid.high + 0.4, grid.high + 1.0])
    at = ends * held.scale if held.offset is None else ends * held.scale + held.offset
    beyond = grid.beyond(at, held)
    assert bool((beyond == torch.tensor([True, False, False, True])).all())
