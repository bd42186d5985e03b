"""What every test gets: seeds, a user folder of its own, the files outside the repository.

And, for decoder and engines, random models of every kind that a config can describe.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from huggingface_hub import constants

from miudo.config import (
    Activation,
    Block,
    LatentAttention,
    LayerConfig,
    Mlp,
    ModelConfig,
    Norm,
    Parallel,
    Position,
    QkNorm,
    RopeKind,
    RopeScaling,
)
from miudo.formats.blocks import encode, to_f32
from miudo.tensors import DType, Role, StoredTensor, tensor_table

REPOSITORY = Path(__file__).parents[1]
KEPT = ("MIUDO_SHARED", "MIUDO_ISA")  # of the variables: `make parity` runs on every path


@pytest.fixture(autouse=True)
def _own_user_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test reads or writes the user's own files."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in ("CONFIG", "CACHE", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))
    for name in [n for n in os.environ if n.startswith(("MIUDO_", "HF_")) and n not in KEPT]:
        monkeypatch.delenv(name)
    # The library read its variables when it was imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "cache" / "huggingface" / "hub"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real text and weights: MIUDO_SHARED, or `../shared` beside the repository."""
    path = Path(os.environ.get("MIUDO_SHARED") or REPOSITORY.parent / "shared")
    if not (path / "data").is_dir():
        pytest.skip(f"needs {path} (set MIUDO_SHARED)")
    return path


@dataclass(frozen=True)
class RandomModel:
    """What NativeEngine needs of a ModelFile."""

    config: ModelConfig
    weights: dict[str, StoredTensor]


def random_model(config: ModelConfig, seed: int = 1, dtype: DType = DType.F32) -> RandomModel:
    """Noise everywhere: a bias or norm weight that nobody reads shows in the logits.

    A tensor's values follow from its name and shape, so that models share what both have.
    """
    weights = {}
    for spec in tensor_table(config):
        rng = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
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


def _layers(config: ModelConfig, **changes: Sequence[Any]) -> ModelConfig:
    """Gives layer i the i-th value of every field."""
    layers = (
        replace(layer, **{name: values[i] for name, values in changes.items()})
        for i, layer in enumerate(config.layers)
    )
    return replace(config, layers=tuple(layers))


def _made(**changes: Any) -> ModelConfig:
    """A small Llama, but for what is given."""
    values: dict[str, Any] = {
        "n_layers": 2, "d_model": 48, "n_heads": 6, "n_kv_heads": 2, "d_ff": 80,
        "vocab_size": 131, "max_positions": 160,
    }  # fmt: skip
    return ModelConfig.uniform(**values | changes)


def _scaled(kind: RopeKind, **numbers: Any) -> ModelConfig:
    return _made(rope_scaling=RopeScaling(kind, 32, **numbers))


def _longrope(short: tuple[float, ...], long: tuple[float, ...]) -> RopeScaling:
    """Of as many original positions as there are: longer sessions are test_session's."""
    return RopeScaling(
        RopeKind.LONGROPE, 160, attention_factor=1.2, short_factors=short, long_factors=long
    )


def _latent(q_rank: int | None, **changes: Any) -> ModelConfig:
    """Heads of 9 unrotated and 4 rotated numbers; values of 7."""
    latent = LatentAttention(kv_rank=20, rope_dim=4, q_rank=q_rank, norm_eps=1e-4)
    made = _made(n_heads=3, n_kv_heads=3, head_dim=12, **changes)
    rotary = made.position is Position.ROPE
    layers = tuple(
        replace(c, head_dim=13, v_head_dim=7, rotary_dim=4 if rotary else None) for c in made.layers
    )
    return replace(made, layers=layers, latent=latent)


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


PLAIN = _made()
SWITCHES: dict[str, ModelConfig] = {
    "layer norm": _made(norm=Norm.LAYER),
    "layer norm with bias": _made(norm=Norm.LAYER, norm_bias=True),
    "norms without weights": _made(norm_weight=False),
    "norm eps": _made(norm_eps=0.3),
    "post": _made(block=Block.POST),
    "sandwich": _made(block=Block.SANDWICH),
    "two norms": _made(parallel=Parallel.TWO_NORMS),
    "one norm": _made(parallel=Parallel.ONE_NORM),
    "embed norm": _made(embed_norm=True),
    "embed scale": _made(embed_scale=6.0),
    "residual scale": _made(residual_scale=0.3),
    "logit scale": _made(logit_scale=2.5),
    "logit softcap": _made(logit_softcap=2.0),
    "attention scale": _made(attn_scale=0.9),
    "attention softcap": _made(attn_softcap=1.5),
    "head norms": _made(qk_norm=QkNorm.HEAD),
    "full norms": _made(qk_norm=QkNorm.FULL),
    "full layer norms": _made(qk_norm=QkNorm.FULL, norm=Norm.LAYER, norm_bias=True),
    "part of a head": _layers(PLAIN, rotary_dim=[2, 6]),
    "linear": _scaled(RopeKind.LINEAR, factor=4.0),
    "llama3": _scaled(RopeKind.LLAMA3, factor=8.0),
    "yarn": _scaled(RopeKind.YARN, factor=4.0, attention_factor=1.4),
    "learned": _made(position=Position.LEARNED),
    "alibi": _made(position=Position.ALIBI),
    "no positions": _made(position=Position.NONE),
    "window": _made(window=37),
    "biases": _made(qkv_bias=True, o_bias=True, mlp_bias=True),
    "plain mlp": _made(mlp=Mlp.PLAIN),
    "gelu": _made(activation=Activation.GELU),
    "gelu tanh": _made(activation=Activation.GELU_TANH),
    "relu": _made(activation=Activation.RELU),
    "latent": _latent(None),
    "latent unrotated": _latent(16, position=Position.NONE),
    "untied": _made(tie_embeddings=False),
}
"""PLAIN with one thing else."""

_GPT2: dict[str, Any] = {
    "norm": Norm.LAYER, "norm_bias": True, "position": Position.LEARNED, "mlp": Mlp.PLAIN,
    "activation": Activation.GELU_TANH, "qkv_bias": True, "o_bias": True, "mlp_bias": True,
    "n_kv_heads": 6,
}  # fmt: skip
_NEOX: dict[str, Any] = _GPT2 | {"position": Position.ROPE, "activation": Activation.GELU}
_GEMMA: dict[str, Any] = {
    "n_layers": 3, "block": Block.SANDWICH, "activation": Activation.GELU_TANH, "head_dim": 12,
    "embed_scale": 48**0.5, "attn_scale": 0.4, "n_kv_heads": 1,
}  # fmt: skip
_GRANITE: dict[str, Any] = {
    "embed_scale": 12.0, "residual_scale": 0.4, "logit_scale": 0.7, "attn_scale": 0.3,
}  # fmt: skip
FAMILIES: dict[str, ModelConfig] = {
    "llama": PLAIN,
    "qwen2": _made(qkv_bias=True, tie_embeddings=False),
    "qwen3": _made(qk_norm=QkNorm.HEAD, norm_eps=1e-6, head_dim=12, rope_theta=1e6),
    "gpt2": _made(**_GPT2),
    "opt": _made(**_GPT2 | {"activation": Activation.RELU}),
    "galactica": _made(**_GPT2 | {
        "activation": Activation.GELU, "norm_weight": False, "norm_bias": False,
        "qkv_bias": False, "o_bias": False, "mlp_bias": False,
    }),
    "bloom": _made(**_GPT2 | {"position": Position.ALIBI, "embed_norm": True}),
    "neox": _layers(
        _made(**_NEOX, parallel=Parallel.TWO_NORMS, tie_embeddings=False), rotary_dim=[2, 2]
    ),
    "stablelm": _layers(
        _made(norm=Norm.LAYER, norm_bias=True, parallel=Parallel.ONE_NORM, tie_embeddings=False),
        rotary_dim=[2, 2],
    ),
    "gemma2": _layers(
        _made(**_GEMMA, attn_softcap=5.0, logit_softcap=4.0), window=[9, None, 9]
    ),
    "gemma3": _layers(
        _made(**_GEMMA, qk_norm=QkNorm.HEAD), window=[7, 7, None], rope_theta=[1e4, 1e4, 1e6]
    ),
    "olmo2": _made(block=Block.POST, qk_norm=QkNorm.FULL, tie_embeddings=False, n_kv_heads=6),
    "dclm": _made(norm=Norm.LAYER, qk_norm=QkNorm.FULL, tie_embeddings=False, n_kv_heads=6),
    "granite": _made(**_GRANITE),
    "minicpm3": replace(_latent(16, **_GRANITE), rope_scaling=_longrope((1.0, 2.0), (1.5, 6.0))),
    "phi": replace(
        _layers(PLAIN, rotary_dim=[6, 6]),
        rope_scaling=_longrope((1.0, 1.1, 1.2), (1.2, 3.0, 9.0)),
    ),
    "openelm": _layers(
        _made(qk_norm=QkNorm.HEAD), n_heads=[4, 6], n_kv_heads=[2, 3], d_ff=[40, 72]
    ),
    "smollm3": _layers(_made(n_layers=3), rotary=[True, True, False]),
    "mistral": _made(window=37),
    "uneven": _uneven(),
}  # fmt: skip
"""Switches together, as real families have them."""

CONFIGS = {**FAMILIES, **SWITCHES}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """Every switch alone, and every mixture."""
    chosen: ModelConfig = request.param
    return chosen


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys())
def family(request: pytest.FixtureRequest) -> ModelConfig:
    """Every mixture."""
    chosen: ModelConfig = request.param
    return chosen


@pytest.fixture(params=SWITCHES.values(), ids=SWITCHES.keys())
def switched(request: pytest.FixtureRequest) -> ModelConfig:
    """`plain` with one thing else."""
    chosen: ModelConfig = request.param
    return chosen


@pytest.fixture
def plain() -> ModelConfig:
    return PLAIN


@pytest.fixture
def every_config() -> dict[str, ModelConfig]:
    return CONFIGS


@pytest.fixture
def make_model() -> Callable[..., RandomModel]:
    return random_model


# Where a block has float16 scales, in bytes; MXFP4 has one byte of exponent, the first.
_SCALES = {
    DType.Q2_K: (80, 82), DType.Q3_K: (108,), DType.Q6_K: (208,), DType.Q4_1: (0, 2),
    DType.Q5_1: (0, 2), DType.Q4_K: (0, 2), DType.Q5_K: (0, 2), DType.Q8_0: (0,),
    DType.Q4_0: (0,), DType.Q5_0: (0,), DType.IQ4_NL: (0,), DType.IQ4_XS: (0,),
    DType.TQ1_0: (52,), DType.TQ2_0: (64,),
}  # fmt: skip


def _noise_blocks(
    dtype: DType, shape: tuple[int, ...], seed: int = 5, spread: float | None = None
) -> StoredTensor:
    """Blocks of random bits with finite scales, or with values that spread about so much."""
    n = dtype.size_bytes(shape) // dtype.block_bytes
    data = np.random.default_rng(seed).integers(0, 256, (n, dtype.block_bytes), dtype=np.uint8)
    for at in _SCALES.get(dtype, ()):
        data[:, at + 1] &= 0xBF  # no exponent of ones
    if dtype is DType.MXFP4:
        data[:, 0] = np.minimum(data[:, 0], 252)
    if spread is not None:
        _set_scales(dtype, data, 1.0)
        have = to_f32(StoredTensor(dtype, shape, data.reshape(-1))).std()
        _set_scales(dtype, data, spread / float(have))
    return StoredTensor(dtype, shape, data.reshape(-1))


def _set_scales(dtype: DType, data: npt.NDArray[np.uint8], scale: float) -> None:
    for at in _SCALES.get(dtype, ()):
        # Of both signs, or types without negative numbers would have a mean far from 0.
        signed = np.where(data[:, at] & 1, scale, -scale).astype("<f2")
        data[:, at : at + 2] = signed.view(np.uint8).reshape(-1, 2)
    if dtype is DType.MXFP4:
        data[:, 0] = 128 + round(np.log2(scale))


@pytest.fixture
def noise_blocks() -> Callable[..., StoredTensor]:
    return _noise_blocks


@pytest.fixture
def block_scales() -> Mapping[DType, tuple[int, ...]]:
    return _SCALES


def _block_model(dtype: DType, config: ModelConfig | None = None) -> RandomModel:
    """A Llama, if nothing else is given, with all of its matrices of one type of blocks."""
    model = random_model(config or _made(d_model=256, n_heads=4, d_ff=512), seed=6)
    for i, (name, tensor) in enumerate(model.weights.items()):
        if len(tensor.shape) == 2:
            spread = 1.5 * tensor.shape[1] ** -0.5
            model.weights[name] = _noise_blocks(dtype, tensor.shape, seed=i, spread=spread)
    return model


@pytest.fixture
def block_model() -> Callable[..., RandomModel]:
    return _block_model
