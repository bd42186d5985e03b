"""GPT-2: layer norm with bias, learned positions, plain feed-forward (Radford et al. 2019).

For: `GPT2LMHeadModel` folders (GPT-2, Cerebras-GPT, LaMini-GPT) and GGUF "gpt2".
Not for: cross attention and the scaling variants of the class, which are refused.
Read next: `miudo.families.bloom`, `miudo.families.neox`, which have its GGUF names.
"""

from __future__ import annotations

from typing import Any

from miudo.config import Activation, Mlp, ModelConfig, Norm, Position
from miudo.families.family import (
    Family,
    Values,
    activation_name,
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
from miudo.families.places import Layout, both_parts

__all__ = ["GGUF_NAMES", "GPT2", "read_gguf_sizes", "write_gguf_sizes"]

_MATRICES = {
    "attn.q": "attn.c_attn", "attn.k": "attn.c_attn", "attn.v": "attn.c_attn",
    "attn.o": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
}  # fmt: skip
GGUF_NAMES = {
    "embed.weight": "token_embd.weight",
    **both_parts(
        "blk.{i}.",
        {
            "attn_norm": "attn_norm", "attn.q": "attn_qkv", "attn.k": "attn_qkv",
            "attn.v": "attn_qkv", "attn.o": "attn_output", "mlp_norm": "ffn_norm",
            "mlp.up": "ffn_up", "mlp.down": "ffn_down",
        },
    ),
    **both_parts("", {"norm": "output_norm"}),
    "head.weight": "output.weight",
}  # fmt: skip
"""Names of architectures with one matrix for queries, keys and values."""

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


def read_gguf_sizes(keys: Values, architecture: str) -> dict[str, Any]:
    """Returns sizes and eps of an architecture with layer norms and as many keys as queries.

    Raises KeyError for one that is missing.
    """
    at = architecture + "."
    return {
        "n_layers": keys[at + "block_count"],
        "d_model": keys[at + "embedding_length"],
        "n_heads": keys[at + "attention.head_count"],
        "n_kv_heads": keys.get(at + "attention.head_count_kv", keys[at + "attention.head_count"]),
        "d_ff": keys[at + "feed_forward_length"],
        "max_positions": keys[at + "context_length"],
        "norm_eps": plain_float(keys[at + "attention.layer_norm_epsilon"]),
        **gguf_common(keys),
    }


def write_gguf_sizes(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """Returns the keys that `read_gguf_sizes` reads."""
    at, layer = architecture + ".", config.layers[0]
    return {
        at + "context_length": config.max_positions,
        at + "embedding_length": config.d_model,
        at + "block_count": config.n_layers,
        at + "feed_forward_length": layer.d_ff,
        at + "attention.head_count": layer.n_heads,
        at + "attention.layer_norm_epsilon": float(config.norm_eps),
        at + "vocab_size": config.vocab_size,
    }


def _read_gguf(keys: Values, names: frozenset[str]) -> ModelConfig:
    return ModelConfig.uniform(
        activation=Activation.GELU_TANH,  # no key names it: this one is meant
        tie_embeddings="output.weight" not in names,
        **_SHAPE,
        **read_gguf_sizes(keys, "gpt2"),
    )


GPT2 = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    model_types=("gpt2",),
    hf_names={
        "embed.weight": "transformer.wte.weight",
        "position.weight": "transformer.wpe.weight",
        **both_parts("transformer.h.{i}.", {"attn_norm": "ln_1", "mlp_norm": "ln_2"} | _MATRICES),
        **both_parts("transformer.", {"norm": "ln_f"}),
        "head.weight": "lm_head.weight",
    },
    config_from_hf=_read_hf,
    config_to_hf=_write_hf,
    hf_prefix="transformer.",
    hf_layout=Layout(transposed=frozenset(f"{name}.weight" for name in _MATRICES)),
    hf_ignored=(".attn.bias", ".attn.masked_bias"),
    gguf_architecture="gpt2",
    gguf_names=GGUF_NAMES | {"position.weight": "position_embd.weight"},
    config_from_gguf=_read_gguf,
    config_to_gguf=lambda config: write_gguf_sizes(config, "gpt2"),
)
