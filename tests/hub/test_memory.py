"""Sizes from shapes: equal to the tensor table, where the family exists, and as published."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miudo.config import Activation, Mlp, ModelConfig, Norm, Position, QkNorm
from miudo.hub.catalogue import STRUCTURES, Entry, load_catalogue
from miudo.hub.memory import PRECISIONS, Shape, kv_cache_bytes, size_of, weights_bytes
from miudo.tensors import DType, Role, parameter_count, tensor_table

CATALOGUE = load_catalogue()
GPT2 = {
    "norm": Norm.LAYER,
    "norm_bias": True,
    "position": Position.LEARNED,
    "mlp": Mlp.PLAIN,
    "activation": Activation.GELU_TANH,
    "qkv_bias": True,
    "o_bias": True,
    "mlp_bias": True,
}
# What the families that miudo reads already say beyond a shape.
CONFIGS = {
    "gpt2": GPT2,
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": QkNorm.HEAD},
    "mistral": {},
    "granite": {},
}


def config_of(family: str, shape: Shape) -> ModelConfig:
    return ModelConfig.uniform(
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        n_heads=shape.n_heads[0],
        n_kv_heads=shape.n_kv_heads[0],
        head_dim=shape.head_dim,
        d_ff=shape.d_ff[0],
        vocab_size=shape.vocab_size,
        max_positions=shape.max_positions,
        tie_embeddings=shape.tied,
        **CONFIGS[family],
    )


@pytest.mark.parametrize(
    "entry", [e for e in CATALOGUE.entries if e.family in CONFIGS], ids=lambda e: e.reference
)
def test_parameters_are_those_of_the_tensor_table(entry: Entry) -> None:
    config = config_of(entry.family, entry.shape)
    assert entry.size.parameters == parameter_count(config)


@given(
    family=st.sampled_from(sorted(CONFIGS)),
    heads=st.integers(1, 4),
    group=st.integers(1, 3),
    rest=st.tuples(*[st.integers(1, 3)] * 4),
    tied=st.booleans(),
    precision=st.sampled_from(["F32", "BF16", "Q8_0"]),
)
def test_bytes_are_those_of_the_tensors_at_their_types(
    family: str, heads: int, group: int, rest: tuple[int, ...], tied: bool, precision: str
) -> None:
    n_layers, width, d_ff, vocabulary = rest
    shape = Shape(
        vocab_size=10 * vocabulary,
        d_model=32 * width,
        n_heads=(heads * group,) * n_layers,
        n_kv_heads=(heads,) * n_layers,
        head_dim=32,
        d_ff=(32 * d_ff,) * n_layers,
        max_positions=64,
        tied=tied,
    )
    config = config_of(family, shape)
    asked, expected = DType(precision), 0
    for spec in tensor_table(config):
        small = spec.role in (Role.NORM, Role.BIAS)
        table = spec.role is Role.POSITION and asked is DType.Q8_0
        dtype = DType.F32 if small else DType.F16 if table else asked
        expected += dtype.size_bytes(spec.shape)
    assert weights_bytes(size_of(shape, STRUCTURES[family]), precision) == expected
    per_token = sum(
        layer.n_kv_heads * (layer.head_dim + layer.v_head_dim) for layer in config.layers
    )
    assert kv_cache_bytes(shape, 7) == 7 * 2 * per_token


@pytest.mark.parametrize("dtype", DType)
def test_bits_a_weight_are_those_of_the_type(dtype: DType) -> None:
    if dtype.value in PRECISIONS:
        assert PRECISIONS[dtype.value] == 8 * dtype.block_bytes / dtype.block


# Parameters as published, in millions, where the maker states more than a rounded name.
PUBLISHED = {
    "gpt2:124m": 124.44,
    "bloom:560m": 559.21,
    "bloom:7.1b": 7069.02,
    "pythia:160m": 162.32,
    "pythia:2.8b": 2775.21,
    "tinyllama:1.1b": 1100.05,
    "llama3.1:8b": 8030.26,
    "llama3.2:1b": 1235.81,
    "smollm2:135m": 134.52,
    "qwen2.5:0.5b": 494.03,
    "mistral:7b": 7248.02,
    "mistral-nemo:12b": 12247.78,
    "phi3.5:3.8b": 3821.08,
    "phi4-mini:3.8b": 3836.02,
    "stablelm-zephyr:3b": 2795.44,
    "gemma2:2b": 2614.34,
    "gemma2:27b": 27227.13,
    "gemma3:270m": 268.10,
    "openelm:270m": 271.53,
    "openelm:3b": 3036.65,
    "minicpm3:4b": 4073.88,
}


@pytest.mark.parametrize(("reference", "millions"), PUBLISHED.items())
def test_parameters_are_as_published(reference: str, millions: float) -> None:
    (entry,) = [e for e in CATALOGUE.entries if e.reference == reference]
    assert entry.size.parameters / 1e6 == pytest.approx(millions, abs=0.006)
