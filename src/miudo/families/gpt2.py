"""GPT-2: layer norm with bias, learned positions, plain feed-forward (Radford et al. 2019).

For: `GPT2LMHeadModel` folders (GPT-2, Cerebras-GPT, LaMini-GPT) and GGUF "gpt2".
Not for: cross attention and the scaling variants of the class, which are refused.
Read next: `miudo.families.family`.
"""

from __future__ import annotations

from typing import Any

from miudo.config import Activation, Mlp, ModelConfig, Norm, Position, QkNorm
from miudo.families.family import (
    Family,
    Layout,
    Values,
    activation_name,
    hf_activation,
    hf_flag,
    hf_number,
    hf_token_ids,
    hf_token_keys,
    plain_float,
    refuse,
    refuse_unknown,
)

__all__ = ["GPT2"]

_PARTS = ("weight", "bias")
_LAYER_HF = {
    "attn_norm": "ln_1", "attn.q": "attn.c_attn", "attn.k": "attn.c_attn",
    "attn.v": "attn.c_attn", "attn.o": "attn.c_proj", "mlp_norm": "ln_2", "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}  # fmt: skip
_LAYER_GGUF = {
    "attn_norm": "attn_norm", "attn.q": "attn_qkv", "attn.k": "attn_qkv", "attn.v": "attn_qkv",
    "attn.o": "attn_output", "mlp_norm": "ffn_norm", "mlp.up": "ffn_up", "mlp.down": "ffn_down",
}  # fmt: skip
_SHAPE: dict[str, Any] = {
    "norm": Norm.LAYER, "norm_bias": True, "position": Position.LEARNED, "mlp": Mlp.PLAIN,
    "qkv_bias": True, "o_bias": True, "mlp_bias": True,
}  # fmt: skip


_VARIANTS: dict[str, tuple[object, ...]] = {
    "scale_attn_by_inverse_layer_idx": (False, None),
    "scale_attn_weights": (True, None),
    "add_cross_attention": (False, None),
}
_READ = frozenset({
    "n_embd", "n_layer", "n_head", "n_inner", "n_positions", "vocab_size", "layer_norm_epsilon",
    "activation_function",
})  # fmt: skip


def _read_hf(values: Values) -> ModelConfig:
    refuse(values, _VARIANTS)
    refuse_unknown(values, _READ | _VARIANTS.keys())
    d_model = hf_number(values, "n_embd")
    return ModelConfig.uniform(
        n_layers=hf_number(values, "n_layer"),
        d_model=d_model,
        n_heads=hf_number(values, "n_head"),
        d_ff=hf_number(values, "n_inner", 4 * d_model),
        vocab_size=hf_number(values, "vocab_size"),
        max_positions=hf_number(values, "n_positions", 1024),
        norm_eps=float(hf_number(values, "layer_norm_epsilon", 1e-5)),
        activation=hf_activation(values, "activation_function", "gelu_new"),
        tie_embeddings=hf_flag(values, "tie_word_embeddings", default=True),
        **_SHAPE,
        **hf_token_ids(values),
    )


def _write_hf(config: ModelConfig) -> dict[str, Any]:
    layer, tanh = config.layers[0], config.activation is Activation.GELU_TANH
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config.d_model,
        "n_inner": layer.d_ff,
        "n_layer": config.n_layers,
        "n_head": layer.n_heads,
        "n_positions": config.max_positions,
        "n_ctx": config.max_positions,
        "vocab_size": config.vocab_size,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new" if tanh else activation_name(config.activation),
        "tie_word_embeddings": config.tie_embeddings,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        **hf_token_keys(config),
    }


def _read_gguf(keys: Values, names: frozenset[str]) -> ModelConfig:
    return ModelConfig.uniform(
        n_layers=keys["gpt2.block_count"],
        d_model=keys["gpt2.embedding_length"],
        n_heads=keys["gpt2.attention.head_count"],
        d_ff=keys["gpt2.feed_forward_length"],
        max_positions=keys["gpt2.context_length"],
        norm_eps=plain_float(keys["gpt2.attention.layer_norm_epsilon"]),
        activation=Activation.GELU_TANH,
        tie_embeddings="output.weight" not in names,
        **_SHAPE,
        **{k: keys[k] for k in ("vocab_size", "bos_id", "eos_ids", "pad_id")},
    )


def _write_gguf(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    return {
        "gpt2.context_length": config.max_positions,
        "gpt2.embedding_length": config.d_model,
        "gpt2.block_count": config.n_layers,
        "gpt2.feed_forward_length": layer.d_ff,
        "gpt2.attention.head_count": layer.n_heads,
        "gpt2.attention.layer_norm_epsilon": float(config.norm_eps),
        "gpt2.vocab_size": config.vocab_size,
    }


def _misfit(config: ModelConfig) -> str | None:
    first = config.layers[0]
    for name, value in _SHAPE.items():
        if getattr(config, name) != value:
            return f"{name} is {getattr(config, name)}"
    if config.qk_norm is not QkNorm.NONE:
        return "it has query and key norms"
    if any(layer != first for layer in config.layers):
        return "its layers differ"
    if first.window is not None:
        return "it attends to a window"
    if first.n_heads != first.n_kv_heads or first.head_dim != first.v_head_dim:
        return "queries, keys and values are not alike"
    if first.n_heads * first.head_dim != config.d_model:
        return "its heads do not add up to d_model"
    return None


def _gguf_misfit(config: ModelConfig) -> str | None:
    if config.activation is not Activation.GELU_TANH:  # GGUF names none: this one is meant
        return f"the activation is {config.activation}"
    return _misfit(config)


GPT2 = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    model_types=("gpt2",),
    gguf_architecture="gpt2",
    hf_names={
        "embed.weight": "transformer.wte.weight",
        "position.weight": "transformer.wpe.weight",
        **{
            f"{k}.{p}": f"transformer.h.{{i}}.{v}.{p}" for k, v in _LAYER_HF.items() for p in _PARTS
        },
        "norm.weight": "transformer.ln_f.weight",
        "norm.bias": "transformer.ln_f.bias",
        "head.weight": "lm_head.weight",
    },
    gguf_names={
        "embed.weight": "token_embd.weight",
        "position.weight": "position_embd.weight",
        **{f"{k}.{p}": f"blk.{{i}}.{v}.{p}" for k, v in _LAYER_GGUF.items() for p in _PARTS},
        "norm.weight": "output_norm.weight",
        "norm.bias": "output_norm.bias",
        "head.weight": "output.weight",
    },
    hf_misfit=_misfit,
    gguf_misfit=_gguf_misfit,
    config_from_hf=_read_hf,
    config_to_hf=_write_hf,
    config_from_gguf=_read_gguf,
    config_to_gguf=_write_gguf,
    hf_prefix="transformer.",
    hf_layout=Layout(
        transposed=frozenset(f"{k}.weight" for k in _LAYER_HF if not k.endswith("norm"))
    ),
    hf_ignored=(".attn.bias", ".attn.masked_bias"),
)
