"""BLOOM: GPT-2's block with ALiBi and a norm of the embeddings (BigScience Workshop 2022).

For: `BloomForCausalLM` folders (BLOOM, BLOOMZ) and GGUF "bloom".
Not for: residuals taken after the norm, which are refused.
Read next: `miudo.families.gpt2`.
"""

from __future__ import annotations

from typing import Any

from miudo.config import Activation, Mlp, ModelConfig, Norm, Position
from miudo.families.family import (
    Family,
    Values,
    hf_flag,
    hf_number,
    hf_token_ids,
    hf_token_keys,
    refuse,
    refuse_unknown,
)
from miudo.families.gpt2 import GGUF_NAMES, read_gguf_sizes, write_gguf_sizes
from miudo.families.places import Layout, both_parts

__all__ = ["BLOOM"]

_FUSED = ("attn.q", "attn.k", "attn.v")
_LAYER = {
    "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
    **dict.fromkeys(_FUSED, "self_attention.query_key_value"),
    "attn.o": "self_attention.dense", "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
}  # fmt: skip
_SHAPE: dict[str, Any] = {
    "norm": Norm.LAYER, "norm_bias": True, "embed_norm": True, "position": Position.ALIBI,
    "mlp": Mlp.PLAIN, "activation": Activation.GELU_TANH, "qkv_bias": True, "o_bias": True,
    "mlp_bias": True,
}  # fmt: skip
_VARIANTS: dict[str, tuple[object, ...]] = {
    "apply_residual_connection_post_layernorm": (False, None),
    "slow_but_exact": (False, None),
}
# Beside what is read, what published files hold of the program that trained them.
_READ = frozenset({
    "n_embed", "hidden_size", "n_layer", "num_hidden_layers", "n_head", "num_attention_heads",
    "vocab_size", "layer_norm_epsilon", "seq_length", "n_inner", "attention_softmax_in_fp32",
    "bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi", "skip_bias_add",
    "skip_bias_add_qkv",
})  # fmt: skip


def _read_hf(values: Values) -> ModelConfig:
    refuse(values, _VARIANTS)
    refuse_unknown(values, _READ | _VARIANTS.keys())
    d_model = hf_number(values, "n_embed", values.get("hidden_size"))
    return ModelConfig.uniform(
        n_layers=hf_number(values, "n_layer", values.get("num_hidden_layers")),
        d_model=d_model,
        n_heads=hf_number(values, "n_head", values.get("num_attention_heads")),
        d_ff=4 * d_model,
        vocab_size=hf_number(values, "vocab_size"),
        max_positions=hf_number(values, "seq_length", 2048),
        norm_eps=float(hf_number(values, "layer_norm_epsilon", 1e-5)),
        tie_embeddings=hf_flag(values, "tie_word_embeddings", default=True),
        **_SHAPE,
        **hf_token_ids(values),
    )


def _write_hf(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "hidden_size": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.layers[0].n_heads,
        "vocab_size": config.vocab_size,
        "seq_length": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        **hf_token_keys(config),
    }


def _read_gguf(keys: Values, names: frozenset[str]) -> ModelConfig:
    tied = "output.weight" not in names
    return ModelConfig.uniform(tie_embeddings=tied, **_SHAPE, **read_gguf_sizes(keys, "bloom"))


BLOOM = Family(
    name="bloom",
    architectures=("BloomForCausalLM", "BloomModel"),
    model_types=("bloom",),
    hf_names={
        "embed.weight": "transformer.word_embeddings.weight",
        **both_parts("transformer.", {"embed_norm": "word_embeddings_layernorm", "norm": "ln_f"}),
        **both_parts(
            "transformer.h.{i}.",
            _LAYER,
        ),
        "head.weight": "lm_head.weight",
    },
    config_from_hf=_read_hf,
    config_to_hf=_write_hf,
    hf_prefix="transformer.",
    hf_layout=Layout(by_head=frozenset(both_parts("", dict.fromkeys(_FUSED, "")))),
    gguf_architecture="bloom",
    gguf_names=GGUF_NAMES | both_parts("", {"embed_norm": "token_embd_norm"}),
    config_from_gguf=_read_gguf,
    config_to_gguf=lambda config: {
        **write_gguf_sizes(config, "bloom"),
        "bloom.attention.head_count_kv": config.layers[0].n_kv_heads,
    },
)
