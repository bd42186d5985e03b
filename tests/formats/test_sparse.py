"""Matrices without zeros: the same blocks back, the bytes as counted, damage refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miudo.config import ModelConfig
from miudo.errors import ConfigError, ModelFileError
from miudo.formats.blocks import encode, f32_chunks, is_finite, largest, recode, to_f32
from miudo.formats.sparse import (
    as_dense,
    bits_per_weight,
    check_sparse,
    sparse_weights,
    to_sparse,
    zeros_of,
)
from miudo.tensors import DType, StoredTensor, tensor_table

DENSE = (DType.Q4_0, DType.Q8_0)


def pruned(rows: int, cols: int, sparsity: float, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    values = draw.standard_normal((rows, cols)).astype(np.float32)
    return np.where(draw.random((rows, cols)) < sparsity, np.float32(0), values)


@st.composite
def blocks(draw: st.DrawFn) -> StoredTensor:
    """Any bytes at all in blocks of a type, with many stored zeros among them."""
    dtype = draw(st.sampled_from(DENSE))
    rows, cols = draw(st.integers(1, 5)), 32 * draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    data = rng.integers(0, 256, (rows * cols // 32, dtype.block_bytes), dtype=np.uint8)
    zero = 0x88 if dtype is DType.Q4_0 else 0
    data[:, 2:][rng.random(data[:, 2:].shape) < draw(st.floats(0, 1))] = zero
    return StoredTensor(dtype, (rows, cols), data.reshape(-1))


@settings(deadline=None)
@given(blocks())
def test_the_blocks_come_back_bit_for_bit(dense: StoredTensor) -> None:
    sparse = to_sparse(dense)
    check_sparse(sparse, "it")
    back = as_dense(sparse)
    assert back.dtype is dense.dtype
    assert back.shape == dense.shape
    assert back.data.tobytes() == dense.data.tobytes()


@pytest.mark.parametrize("dtype", DENSE)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_bytes_are_those_of_the_closed_form(dtype: DType, sparsity: float) -> None:
    shape = (32, 64)
    kept = round((1 - sparsity) * 2048)
    # Numbers that no rounding makes zero: of equal size.
    flat = np.zeros(2048, np.float32)
    flat[np.random.default_rng(1).permutation(2048)[:kept]] = 1
    sparse = to_sparse(encode(flat.reshape(shape), dtype))
    wanted = bits_per_weight(sparse.dtype, 1 - kept / 2048) * 2048 / 8
    assert sparse.size_bytes == len(sparse.data) == -(-wanted // 1)
    assert zeros_of({"it": sparse}) == pytest.approx(1 - kept / 2048)


@pytest.mark.parametrize(("dtype", "bits"), [(DType.SPARSE4, 4), (DType.SPARSE8, 8)])
def test_it_pays_past_one_zero_in_as_many_as_a_number_has_bits(dtype: DType, bits: int) -> None:
    dense = 8 * dtype.dense.block_bytes / dtype.dense.block
    assert bits_per_weight(dtype, 1 / bits) == dense
    assert bits_per_weight(dtype, 1 / bits + 0.01) < dense
    # Two of four: 2 bits of place and the number, twice, for four weights.
    assert bits_per_weight(dtype, 0.5) - 0.5 == 2 * (2 + bits) / 4


@pytest.mark.parametrize("dtype", DENSE)
def test_a_sparse_tensor_reads_as_the_dense_one(dtype: DType) -> None:
    dense = encode(pruned(5, 96, 0.6), dtype)
    sparse = to_sparse(dense)
    assert np.array_equal(to_f32(sparse), to_f32(dense))
    assert np.array_equal(np.concatenate(list(f32_chunks(sparse))), to_f32(dense).reshape(-1))
    assert recode(sparse, DType.F16).data.tobytes() == recode(dense, DType.F16).data.tobytes()
    assert largest(sparse) == largest(dense)
    assert is_finite(sparse)


def test_only_matrices_of_q4_0_and_q8_0_have_a_sparse_form() -> None:
    with pytest.raises(ConfigError, match="no sparse form"):
        to_sparse(encode(pruned(2, 32, 0.5), DType.Q5_0))
    with pytest.raises(ConfigError, match="no sparse form"):
        to_sparse(encode(pruned(1, 32, 0.5)[0], DType.Q4_0))


def test_damaged_bytes_are_refused() -> None:
    sparse = to_sparse(encode(pruned(3, 64, 0.5), DType.Q4_0))
    more_bits = sparse.data.copy()
    more_bits[:4] = 255
    for data in (sparse.data[:-1], np.append(sparse.data, np.uint8(0)), sparse.data[:9], more_bits):
        with pytest.raises(ModelFileError, match="ask for"):
            check_sparse(StoredTensor(sparse.dtype, sparse.shape, data), "it")
    for shape in ((3, 65), (6, 32, 1), (192,)):
        with pytest.raises(ModelFileError):
            check_sparse(StoredTensor(sparse.dtype, shape, sparse.data), "it")


def test_matrices_become_sparse_where_that_is_smaller() -> None:
    config = ModelConfig.uniform(
        n_layers=1, d_model=32, n_heads=2, d_ff=64, vocab_size=40, max_positions=8
    )
    weights = {}
    for spec in tensor_table(config):
        full = "mlp.up" in spec.name
        values = pruned(1, int(np.prod(spec.shape)), 0.0 if full else 0.5).reshape(spec.shape)
        weights[spec.name] = encode(values, DType.Q4_0 if len(spec.shape) == 2 else DType.F32)
    made = sparse_weights(config, weights)
    assert made["layers.0.attn.q.weight"].dtype is DType.SPARSE4
    assert made["layers.0.mlp.down.weight"].dtype is DType.SPARSE4
    # Too few zeros; a table, whose rows are looked up; no matrix.
    for name in ("layers.0.mlp.up.weight", "embed.weight", "norm.weight"):
        assert made[name] is weights[name]
