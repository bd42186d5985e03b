"""One tiny config of every family, with what it can say and others cannot."""

from __future__ import annotations

from typing import Any

from miudo.config import (
    Activation,
    Block,
    LatentAttention,
    Mlp,
    Norm,
    Parallel,
    Position,
    QkNorm,
    RopeKind,
    RopeScaling,
)

__all__ = [
    "EXAMPLES",
    "IDS",
    "LATENT",
    "LAYERS",
    "LONG",
    "MINICPM3_SCALES",
    "PLAIN",
    "SCALES",
    "SHAPE",
]

SHAPE: dict[str, Any] = {
    "n_layers": 2, "d_model": 32, "n_heads": 4, "d_ff": 64, "vocab_size": 50, "max_positions": 64,
}  # fmt: skip
PLAIN: dict[str, Any] = {
    "norm": Norm.LAYER, "norm_bias": True, "position": Position.LEARNED, "mlp": Mlp.PLAIN,
    "activation": Activation.GELU_TANH, "qkv_bias": True, "o_bias": True, "mlp_bias": True,
}  # fmt: skip
LONG = RopeScaling(
    RopeKind.LONGROPE, 16, attention_factor=1.25, short_factors=(1.0, 1.5), long_factors=(2.0, 3.0)
)
SCALES: dict[str, Any] = {"embed_scale": 12.0, "residual_scale": 0.25, "logit_scale": 0.125}
LATENT: dict[str, Any] = {"latent": LatentAttention(8, 4, 16), "rotary_dim": 4}
MINICPM3_SCALES: dict[str, Any] = {
    "embed_scale": 12.0, "residual_scale": 1.4 / 2**0.5, "logit_scale": 8.0,
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "block": Block.SANDWICH, "activation": Activation.GELU_TANH, "embed_scale": 32**0.5,
    "head_dim": 16, "n_kv_heads": 2,
}  # fmt: skip
EXAMPLES: dict[str, dict[str, Any]] = {
    "llama": {"tie_embeddings": False, "mlp_bias": True, "norm_eps": 3e-7},
    "mistral": {"n_kv_heads": 2, "window": 8},
    "qwen2": {"qkv_bias": True, "n_kv_heads": 2},
    "qwen3": {"qk_norm": QkNorm.HEAD, "head_dim": 16},
    "phi": {"rotary_dim": 4, "rope_scaling": LONG},
    "minicpm": SCALES,
    "granite": SCALES | {"attn_scale": 0.5, "qkv_bias": True, "o_bias": True},
    "smollm3": {"rope_theta": 5e5},
    "olmo2": {"block": Block.POST, "qk_norm": QkNorm.FULL, "tie_embeddings": False},
    "minicpm3": LATENT | MINICPM3_SCALES,
    "gpt2": PLAIN,
    "bloom": PLAIN | {"position": Position.ALIBI, "embed_norm": True, "d_ff": 128},
    "opt": PLAIN | {"activation": Activation.RELU},
    "neox": PLAIN
    | {
        "position": Position.ROPE, "parallel": Parallel.TWO_NORMS, "rotary_dim": 4,
        "activation": Activation.GELU, "tie_embeddings": False,
    },
    "stablelm": {
        "norm": Norm.LAYER, "norm_bias": True, "rotary_dim": 2, "qkv_bias": True, "n_kv_heads": 2,
        "parallel": Parallel.ONE_NORM, "tie_embeddings": False,
    },
    "gemma2": GEMMA | {"attn_softcap": 50.0, "logit_softcap": 30.0},
    "gemma3": GEMMA | {"qk_norm": QkNorm.HEAD},
    "openelm": {"qk_norm": QkNorm.HEAD, "n_kv_heads": 2, "norm_eps": 1e-6},
    "dclm": {
        "norm": Norm.LAYER, "qk_norm": QkNorm.FULL, "d_ff": 256, "tie_embeddings": False,
        "embed_norm": True,
    },
}  # fmt: skip
# Where layers differ, what each has of its own.
LAYERS: dict[str, list[dict[str, Any]]] = {
    "gemma2": [{"window": 8}, {}],
    "gemma3": [{"window": 8}] * 5 + [{"rope_theta": 1e6}, {"window": 8}],
    "openelm": [{}, {"n_heads": 6, "d_ff": 96}, {"n_heads": 8, "n_kv_heads": 4, "d_ff": 132}],
}
IDS = {"bos_id": 1, "eos_ids": (2, 3), "pad_id": 0}
