"""Random models of every kind, for the native engine's tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from miudo.adapter import Adapter, LowRank, base_fingerprint
from miudo.config import (
    Activation,
    LayerConfig,
    Mlp,
    ModelConfig,
    Norm,
    Position,
    QkNorm,
)
from miudo.formats.blocks import encode
from miudo.tensors import DType, Role, StoredTensor, tensor_table


@dataclass(frozen=True)
class RandomModel:
    """What NativeEngine needs of a ModelFile."""

    config: ModelConfig
    weights: dict[str, StoredTensor]


def random_model(config: ModelConfig, seed: int = 1, dtype: DType = DType.F32) -> RandomModel:
    """Noise everywhere: a bias or norm weight that nobody reads shows in the logits."""
    rng = np.random.default_rng(seed)
    weights = {}
    for spec in tensor_table(config):
        noise = rng.standard_normal(spec.shape).astype(np.float32)
        if spec.role in (Role.NORM, Role.BIAS):
            value = noise * np.float32(0.3)
            if not spec.name.endswith(".bias"):
                value += 1
        else:
            value = noise * np.float32(1.5 * spec.shape[-1] ** -0.5)
        vector = len(spec.shape) == 1
        kind = dtype if not vector and dtype.fits(spec.shape) else DType.F32
        weights[spec.name] = encode(value, kind)
    return RandomModel(config, weights)


def random_adapter(model: RandomModel, seed: int = 1, rank: int = 5) -> Adapter:
    """Corrects every matrix as strongly as the matrix itself works, each with a rank of its own."""
    rng = np.random.default_rng(seed)
    parts = {}
    for i, spec in enumerate(tensor_table(model.config)):
        if spec.role in (Role.ATTENTION, Role.MLP):
            rows, cols = spec.shape
            r = rank + i % 3
            down = rng.standard_normal((r, cols)).astype(np.float32) * np.float32(cols**-0.5)
            up = rng.standard_normal((rows, r)).astype(np.float32) * np.float32(r**-0.5)
            parts[spec.name] = LowRank(down, up, 0.75)
    return Adapter(parts, base_fingerprint(model.config, model.weights))


def _llama() -> ModelConfig:
    return ModelConfig.uniform(
        n_layers=2, d_model=48, n_heads=6, n_kv_heads=2, d_ff=80, vocab_size=131, max_positions=160
    )


def _uneven() -> ModelConfig:
    """Layers of unequal shape; sizes that fill no tile, no vector, no cache line."""
    layers = (
        LayerConfig(n_heads=3, n_kv_heads=3, head_dim=10, v_head_dim=7, d_ff=29, rope_theta=500.0),
        LayerConfig(n_heads=4, n_kv_heads=1, head_dim=6, v_head_dim=12, d_ff=17, window=5),
        LayerConfig(n_heads=2, n_kv_heads=2, head_dim=9, v_head_dim=3, d_ff=33, rotary=False),
    )
    return ModelConfig(
        vocab_size=67, d_model=21, max_positions=150, layers=layers, tie_embeddings=False
    )


CONFIGS: dict[str, ModelConfig] = {
    "llama": _llama(),
    "qwen2": replace(_llama(), qkv_bias=True, tie_embeddings=False),
    "qwen3": replace(_llama(), qk_norm=QkNorm.HEAD, norm_eps=1e-6),
    "gpt2": ModelConfig.uniform(
        n_layers=2, d_model=40, n_heads=5, d_ff=96, vocab_size=99, max_positions=150,
        norm=Norm.LAYER, norm_bias=True, position=Position.LEARNED, mlp=Mlp.PLAIN,
        activation=Activation.GELU_TANH, qkv_bias=True, o_bias=True, mlp_bias=True,
    ),
    "window": ModelConfig.uniform(
        n_layers=3, d_model=32, n_heads=4, n_kv_heads=1, d_ff=64, vocab_size=50,
        max_positions=160, window=37, mlp_bias=True, o_bias=True,
    ),
    "gelu": replace(_llama(), activation=Activation.GELU, mlp_bias=True),
    "relu": replace(_llama(), activation=Activation.RELU, norm=Norm.LAYER),
    "uneven": _uneven(),
}  # fmt: skip


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request: pytest.FixtureRequest) -> ModelConfig:
    chosen: ModelConfig = request.param
    return chosen


@pytest.fixture
def make_model() -> Callable[..., RandomModel]:
    return random_model


@pytest.fixture
def make_adapter() -> Callable[..., Adapter]:
    return random_adapter


@pytest.fixture
def llama() -> RandomModel:
    return random_model(CONFIGS["llama"])


@pytest.fixture
def llama_q8() -> RandomModel:
    """All of its matrices fit Q8_0."""
    config = ModelConfig.uniform(
        n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, d_ff=160, vocab_size=131,
        max_positions=160,
    )  # fmt: skip
    return random_model(config, seed=2, dtype=DType.Q8_0)


@pytest.fixture
def block_model(noise_blocks: Callable[..., StoredTensor]) -> Callable[..., RandomModel]:
    """All of its matrices fit blocks of 256, and are of the type asked for."""
    config = ModelConfig.uniform(
        n_layers=2, d_model=256, n_heads=4, n_kv_heads=2, d_ff=512, vocab_size=131,
        max_positions=160,
    )  # fmt: skip

    def make(dtype: DType) -> RandomModel:
        model = random_model(config, seed=6)
        for i, (name, tensor) in enumerate(model.weights.items()):
            if len(tensor.shape) == 2:
                spread = 1.5 * tensor.shape[1] ** -0.5
                model.weights[name] = noise_blocks(dtype, tensor.shape, seed=i, spread=spread)
        return model

    return make
