"""OpenELM: heads and widths that grow from layer to layer (Mehta et al. 2024).

For: `OpenELMForCausalLM` folders, which only their authors' code and miudo read, and GGUF
"openelm"; within a layer the model is a Qwen3.
Not for: variants without query and key norms or without a gate, which are refused.
Read next: `miudo.families.qwen`.
"""

from __future__ import annotations

import math
from typing import Any

from miudo.config import LayerConfig, ModelConfig, QkNorm
from miudo.config.parts import in_range
from miudo.errors import ModelFileError
from miudo.families.family import (
    Family,
    Values,
    gguf_common,
    hf_activation,
    hf_flag,
    hf_number,
    hf_token_ids,
    hf_token_keys,
    plain_float,
    refuse,
    refuse_unknown,
)
from miudo.limits import LIMITS

__all__ = ["OPENELM"]

_LAYER_HF = {
    "attn_norm": "attn_norm", "attn.q": "attn.qkv_proj", "attn.k": "attn.qkv_proj",
    "attn.v": "attn.qkv_proj", "attn.q_norm": "attn.q_norm", "attn.k_norm": "attn.k_norm",
    "attn.o": "attn.out_proj", "mlp_norm": "ffn_norm", "mlp.gate": "ffn.proj_1",
    "mlp.up": "ffn.proj_1", "mlp.down": "ffn.proj_2",
}  # fmt: skip
_LAYER_GGUF = {
    "attn_norm": "attn_norm", "attn.q": "attn_qkv", "attn.k": "attn_qkv", "attn.v": "attn_qkv",
    "attn.q_norm": "attn_q_norm", "attn.k_norm": "attn_k_norm", "attn.o": "attn_output",
    "mlp_norm": "ffn_norm", "mlp.gate": "ffn_gate", "mlp.up": "ffn_up", "mlp.down": "ffn_down",
}  # fmt: skip
_VARIANTS: dict[str, tuple[object, ...]] = {
    "normalize_qk_projections": (True,),
    "ffn_with_glu": (True,),
    "normalization_layer_name": ("rms_norm",),
}
_READ = frozenset({
    "model_dim", "num_transformer_layers", "num_query_heads", "num_kv_heads", "head_dim",
    "ffn_multipliers", "ffn_dim_divisor", "rope_freq_constant", "rope_max_length",
    "max_context_length", "activation_fn_name", "share_input_output_layers", "vocab_size",
    "num_gqa_groups", "qkv_multipliers",
})  # fmt: skip


def _read_hf(values: Values) -> ModelConfig:
    refuse(values, _VARIANTS)
    refuse_unknown(values, _READ | _VARIANTS.keys())
    d_model, divisor = hf_number(values, "model_dim"), hf_number(values, "ffn_dim_divisor", 256)
    layers = hf_number(values, "num_transformer_layers")
    in_range("num_transformer_layers", layers, 1, LIMITS.n_layers)
    shared = {
        "head_dim": hf_number(values, "head_dim"),
        "rope_theta": float(hf_number(values, "rope_freq_constant", 10000.0)),
    }
    return ModelConfig(
        d_model=d_model,
        layers=_layers(
            _each(values, "num_query_heads", layers),
            _each(values, "num_kv_heads", layers),
            [_width(m * d_model, divisor) for m in _each(values, "ffn_multipliers", layers)],
            **shared,
        ),
        vocab_size=hf_number(values, "vocab_size"),
        max_positions=hf_number(values, "max_context_length", 2048),
        norm_eps=1e-6,  # no key says another
        activation=hf_activation(values, "activation_fn_name", "swish"),
        qk_norm=QkNorm.HEAD,
        tie_embeddings=hf_flag(values, "share_input_output_layers", default=True),
        **hf_token_ids(values),
    )


def _each(values: Values, key: str, layers: int) -> list[Any]:
    """A number for each layer, from a list or from one for all."""
    given = values.get(key)
    if not isinstance(given, list):
        return [hf_number(values, key)] * layers
    if len(given) != layers:
        raise ModelFileError(f"{key} has {len(given)} numbers, not {layers}", where="config.json")
    return [hf_number({key: item}, key) for item in given]


def _width(value: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `value`, never a tenth below it."""
    if type(divisor) is not int or divisor < 1 or not 0 < value < LIMITS.d_ff * 2:
        raise ModelFileError(f"no width of {value!r:.20} by {divisor!r:.20}", where="config.json")
    width = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return width if width >= 0.9 * value else width + divisor


def _layers(
    heads: list[int], kv_heads: list[int], widths: list[int], *, head_dim: int, rope_theta: float
) -> tuple[LayerConfig, ...]:
    return tuple(
        LayerConfig(n, k, head_dim, head_dim, d_ff, rope_theta=rope_theta)
        for n, k, d_ff in zip(heads, kv_heads, widths, strict=True)
    )


def _write_hf(config: ModelConfig) -> dict[str, Any]:
    first = config.layers[0]
    return {
        "architectures": ["OpenELMForCausalLM"],
        "model_type": "openelm",
        "model_dim": config.d_model,
        "num_transformer_layers": config.n_layers,
        "num_query_heads": [layer.n_heads for layer in config.layers],
        "num_kv_heads": [layer.n_kv_heads for layer in config.layers],
        "head_dim": first.head_dim,
        "ffn_multipliers": [layer.d_ff / config.d_model for layer in config.layers],
        "ffn_dim_divisor": math.gcd(256, *(layer.d_ff for layer in config.layers)),
        "ffn_with_glu": True,
        "activation_fn_name": "swish",
        "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": True,
        "rope_freq_constant": first.rope_theta,
        "rope_max_length": 2 * config.max_positions,
        "max_context_length": config.max_positions,
        "share_input_output_layers": config.tie_embeddings,
        "tie_word_embeddings": config.tie_embeddings,
        "vocab_size": config.vocab_size,
        **hf_token_keys(config),
    }


def _read_gguf(keys: Values, names: frozenset[str]) -> ModelConfig:
    at = "openelm."
    layers = keys[at + "block_count"]
    in_range(at + "block_count", layers, 1, LIMITS.n_layers)

    def each(key: str) -> list[Any]:
        value = keys[at + key]
        return value if isinstance(value, list) else [value] * layers

    return ModelConfig(
        d_model=keys[at + "embedding_length"],
        layers=_layers(
            each("attention.head_count"),
            each("attention.head_count_kv"),
            each("feed_forward_length"),
            head_dim=keys[at + "attention.key_length"],
            rope_theta=plain_float(keys.get(at + "rope.freq_base", 10000.0)),
        ),
        max_positions=keys[at + "context_length"],
        norm_eps=plain_float(keys[at + "attention.layer_norm_rms_epsilon"]),
        qk_norm=QkNorm.HEAD,
        tie_embeddings="output.weight" not in names,
        **gguf_common(keys),
    )


def _write_gguf(config: ModelConfig) -> dict[str, Any]:
    at, first = "openelm.", config.layers[0]
    return {
        at + "context_length": config.max_positions,
        at + "embedding_length": config.d_model,
        at + "block_count": config.n_layers,
        at + "feed_forward_length": [layer.d_ff for layer in config.layers],
        at + "attention.head_count": [layer.n_heads for layer in config.layers],
        at + "attention.head_count_kv": [layer.n_kv_heads for layer in config.layers],
        at + "attention.key_length": first.head_dim,
        at + "attention.value_length": first.head_dim,
        at + "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        at + "rope.freq_base": float(first.rope_theta),
        at + "rope.dimension_count": first.head_dim,
        at + "vocab_size": config.vocab_size,
    }


def _weights(layer: str, names: dict[str, str]) -> dict[str, str]:
    return {f"{ours}.weight": f"{layer}{theirs}.weight" for ours, theirs in names.items()}


OPENELM = Family(
    name="openelm",
    architectures=("OpenELMForCausalLM", "OpenELMModel"),
    model_types=("openelm",),
    hf_names={
        "embed.weight": "transformer.token_embeddings.weight",
        **_weights("transformer.layers.{i}.", _LAYER_HF),
        "norm.weight": "transformer.norm.weight",
        "head.weight": "lm_head.weight",
    },
    config_from_hf=_read_hf,
    config_to_hf=_write_hf,
    hf_prefix="transformer.",
    hf_ignored=("pos_embedding.inv_freq",),
    foreign=True,
    gguf_architecture="openelm",
    gguf_names={
        "embed.weight": "token_embd.weight",
        **_weights("blk.{i}.", _LAYER_GGUF),
        "norm.weight": "output_norm.weight",  # and no head: other programs know none here
    },
    config_from_gguf=_read_gguf,
    config_to_gguf=_write_gguf,
)
