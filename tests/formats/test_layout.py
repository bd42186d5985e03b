"""Layouts of files and back: every order of rows, every number of them, every type."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from miudo.errors import ModelFileError
from miudo.families.places import Source
from miudo.formats.blocks import encode, to_f32
from miudo.formats.layout import file_rows, join, split
from miudo.tensors import DType, StoredTensor

ROWS = {"q": 12, "k": 6, "v": 9}


def noise(shape: tuple[int, ...], dtype: DType = DType.F32) -> StoredTensor:
    return encode(np.random.default_rng(5).standard_normal(shape).astype("<f4"), dtype)


@pytest.mark.parametrize("dtype", [t for t in DType if not t.sparse])
@pytest.mark.parametrize("skipped", [0, 2])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_joined_comes_apart_as_it_was(
    dtype: DType,
    skipped: int,
    groups: int,
    transposed: bool,
    noise_blocks: Callable[..., StoredTensor],
) -> None:
    source = Source("qkv", ("q", "k", "v"), transposed, groups, skipped)
    cols = max(32, dtype.block)
    weights = {
        name: noise((n, cols), dtype) if dtype.block == 1 else noise_blocks(dtype, (n, cols))
        for name, n in ROWS.items()
    }
    if transposed and dtype.block > 1:
        with pytest.raises(ModelFileError, match="cannot be turned"):
            join(source, weights)
        return
    whole = join(source, weights)
    assert whole.shape == ((cols, 27 + skipped) if transposed else (27 + skipped, cols))
    back = dict(split(source, whole, {name: t.shape for name, t in weights.items()}))
    assert back.keys() == weights.keys()
    for name, tensor in weights.items():
        assert back[name].dtype is dtype
        np.testing.assert_array_equal(back[name].data, tensor.data)


def test_rows_lie_head_by_head() -> None:
    source = Source("qkv", ("q", "k", "v"), groups=2)
    assert file_rows(source, [4, 2, 2]).tolist() == [0, 1, 4, 6, 2, 3, 5, 7]
    # As the class that writes them cuts them: heads, then q, k and v of each.
    parts = {name: noise((4, 8)) for name in "qkv"}
    theirs = to_f32(join(source, parts)).reshape(2, 3, 2, 8)
    for i, name in enumerate("qkv"):
        np.testing.assert_array_equal(theirs[:, i].reshape(4, 8), to_f32(parts[name]))


def test_biases_lie_head_by_head_too() -> None:
    source = Source("qkv.bias", ("q", "k"), groups=2)
    weights = {name: noise((4,)) for name in "qk"}
    back = dict(split(source, join(source, weights), {"q": (4,), "k": (4,)}))
    for name, tensor in weights.items():
        np.testing.assert_array_equal(back[name].data, tensor.data)


def test_rows_that_no_heads_can_share() -> None:
    with pytest.raises(ModelFileError, match="not for 5 heads"):
        file_rows(Source("qkv", ("q", "k"), groups=5), [10, 9])


def test_skipped_rows_are_written_as_zeros() -> None:
    source = Source("position", ("position",), skipped=2)
    written = to_f32(join(source, {"position": noise((5, 4))}))
    assert not written[:2].any()
    with pytest.raises(ModelFileError, match=r"is \[5, 4\], the config wants \[7, 4\]"):
        dict(split(source, noise((5, 4)), {"position": (5, 4)}))


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
def test_a_norm_that_lacks_1_comes_back_to_the_bit(dtype: DType) -> None:
    source = Source("norm", ("norm",), plus=1.0)
    stored = encode(np.random.default_rng(1).normal(0, 1, 4096).astype("<f4"), dtype)
    ours = dict(split(source, stored, {"norm": (4096,)}))
    assert ours["norm"].dtype is DType.F32
    np.testing.assert_array_equal(to_f32(ours["norm"]), to_f32(stored) + np.float32(1))
    again = join(source, ours)
    # Written once, a second reading gives the same norm, whatever rounding 1 + w took.
    np.testing.assert_array_equal(
        dict(split(source, again, {"norm": (4096,)}))["norm"].data, ours["norm"].data
    )
