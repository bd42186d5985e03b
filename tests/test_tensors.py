"""The tensor table against tables written by hand, and the sizes of stored numbers."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miudo.config import LayerConfig, Mlp, ModelConfig, Norm, Position, QkNorm
from miudo.tensors import DType, Role, StoredTensor, parameter_count, tensor_table


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {spec.name: spec.shape for spec in tensor_table(config)}


LLAMA = ModelConfig.uniform(
    n_layers=1, d_model=8, n_heads=4, n_kv_heads=2, d_ff=12, vocab_size=20, max_positions=16
)
GPT2 = ModelConfig.uniform(
    n_layers=1,
    d_model=8,
    n_heads=2,
    d_ff=32,
    vocab_size=20,
    max_positions=16,
    norm=Norm.LAYER,
    norm_bias=True,
    position=Position.LEARNED,
    mlp=Mlp.PLAIN,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
)


def test_a_llama_block_in_execution_order() -> None:
    assert list(shapes(LLAMA).items()) == [
        ("embed.weight", (20, 8)),
        ("layers.0.attn_norm.weight", (8,)),
        ("layers.0.attn.q.weight", (8, 8)),
        ("layers.0.attn.k.weight", (4, 8)),
        ("layers.0.attn.v.weight", (4, 8)),
        ("layers.0.attn.o.weight", (8, 8)),
        ("layers.0.mlp_norm.weight", (8,)),
        ("layers.0.mlp.gate.weight", (12, 8)),
        ("layers.0.mlp.up.weight", (12, 8)),
        ("layers.0.mlp.down.weight", (8, 12)),
        ("norm.weight", (8,)),
    ]


def test_a_gpt2_block_has_biases_and_positions_and_no_gate() -> None:
    found = shapes(GPT2)
    assert found["position.weight"] == (16, 8)
    assert found["layers.0.attn_norm.bias"] == (8,)
    assert found["layers.0.attn.q.bias"] == (8,)
    assert found["layers.0.mlp.up.bias"] == (32,)
    assert found["layers.0.mlp.down.bias"] == (8,)
    assert found["norm.bias"] == (8,)
    assert "layers.0.mlp.gate.weight" not in found


def test_a_qwen_block_has_head_norms_and_an_untied_head() -> None:
    config = ModelConfig.uniform(
        n_layers=1,
        d_model=8,
        n_heads=2,
        head_dim=6,
        d_ff=12,
        vocab_size=20,
        max_positions=16,
        qk_norm=QkNorm.HEAD,
        tie_embeddings=False,
    )
    found = shapes(config)
    assert found["layers.0.attn.q_norm.weight"] == (6,)
    assert found["layers.0.attn.k_norm.weight"] == (6,)
    assert found["layers.0.attn.q.weight"] == (12, 8)
    assert found["layers.0.attn.o.weight"] == (8, 12)
    assert found["head.weight"] == (20, 8)


def test_values_and_keys_may_differ_in_size_and_layers_among_themselves() -> None:
    wide = LayerConfig(n_heads=4, n_kv_heads=2, head_dim=6, v_head_dim=3, d_ff=10)
    slim = LayerConfig(n_heads=2, n_kv_heads=1, head_dim=4, v_head_dim=4, d_ff=5)
    config = ModelConfig(vocab_size=20, d_model=8, max_positions=16, layers=(wide, slim))
    found = shapes(config)
    assert found["layers.0.attn.k.weight"] == (12, 8)
    assert found["layers.0.attn.v.weight"] == (6, 8)
    assert found["layers.0.attn.o.weight"] == (8, 12)
    assert found["layers.1.mlp.down.weight"] == (8, 5)


def test_parameters_are_counted_by_hand() -> None:
    block = 8 * 8 + 4 * 8 + 4 * 8 + 8 * 8 + 3 * 12 * 8 + 2 * 8
    assert parameter_count(LLAMA) == 20 * 8 + block + 8
    assert parameter_count(LLAMA, embeddings=False) == block + 8
    learned = parameter_count(GPT2) - parameter_count(GPT2, embeddings=False)
    assert learned == 20 * 8 + 16 * 8


@given(
    st.integers(1, 3),
    st.sampled_from(Norm),
    st.sampled_from(Mlp),
    st.sampled_from(Position),
    st.booleans(),
)
def test_names_are_unique_and_roles_fit(
    n_layers: int, norm: Norm, mlp: Mlp, position: Position, bias: bool
) -> None:
    config = ModelConfig.uniform(
        n_layers=n_layers,
        d_model=8,
        n_heads=2,
        d_ff=12,
        vocab_size=20,
        max_positions=16,
        norm=norm,
        norm_bias=bias,
        mlp=mlp,
        position=position,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
    )
    table = tensor_table(config)
    assert len({spec.name for spec in table}) == len(table)
    assert sum(prod(spec.shape) for spec in table) == parameter_count(config)
    for spec in table:
        assert (spec.layer is None) == (not spec.name.startswith("layers."))
        assert (len(spec.shape) == 1) == (spec.role in (Role.NORM, Role.BIAS))
        if spec.role in (Role.NORM, Role.BIAS):
            assert spec.lowest is DType.F32


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        (DType.F32, (3, 5), 60),
        (DType.F16, (3, 5), 30),
        (DType.BF16, (7,), 14),
        (DType.Q8_0, (2, 64), 2 * 2 * 34),
        (DType.Q4_0, (2, 64), 2 * 2 * 18),
        (DType.Q4_K, (3, 512), 3 * 2 * 144),
    ],
)
def test_bytes_of_a_tensor(dtype: DType, shape: tuple[int, ...], size: int) -> None:
    assert dtype.size_bytes(shape) == size


def test_rows_fit_only_in_whole_blocks() -> None:
    assert DType.Q8_0.fits((3, 64))
    assert not DType.Q8_0.fits((64, 172))
    assert not DType.Q8_0.fits(())
    assert DType.F16.fits((1, 1))


def test_a_stored_tensor_shares_memory_where_it_can() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    stored = StoredTensor.from_f32(array)
    assert np.shares_memory(stored.data, array)
    assert stored.dtype is DType.F32
    assert stored.shape == (2, 3)
    assert stored.data.tobytes() == array.tobytes()
    turned = StoredTensor.from_f32(array.T)
    assert turned.shape == (3, 2)
    assert turned.data.tobytes() == np.ascontiguousarray(array.T).tobytes()
