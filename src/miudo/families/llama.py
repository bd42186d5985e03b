"""Llama: RMS norm, rotary positions, gated feed-forward (Touvron et al. 2023).

For: `LlamaForCausalLM` folders (Llama, TinyLlama, MobileLLaMA, Fox, SmolLM2) and GGUF "llama".
Not for: namesakes whose layers share weights, which are refused by architecture.
Read next: `miudo.families.qwen`, which differs in biases and norms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from miudo.config import ModelConfig
from miudo.errors import ModelFileError
from miudo.families.family import (
    Family,
    Values,
    activation_name,
    hf_activation,
    hf_flag,
    hf_number,
    hf_token_ids,
    hf_token_keys,
    plain_float,
    refuse_unknown,
)
from miudo.families.gguf_rope import GGUF_ROPE, read_gguf_rope, write_gguf_rope
from miudo.families.rope import HF_ROPE, read_rope, write_rope

__all__ = [
    "GGUF_NAMES",
    "HF_NAMES",
    "LLAMA",
    "biases_misfit",
    "gguf_reader",
    "gguf_writer",
    "hf_misfit",
    "read_hf",
    "write_hf",
]

HF_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "attn_norm.weight": "model.layers.{i}.input_layernorm.weight",
    **{
        f"attn.{x}.{kind}": f"model.layers.{{i}}.self_attn.{x}_proj.{kind}"
        for x in "qkvo"
        for kind in ("weight", "bias")
    },
    "mlp_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    **{
        f"mlp.{x}.{kind}": f"model.layers.{{i}}.mlp.{x}_proj.{kind}"
        for x in ("gate", "up", "down")
        for kind in ("weight", "bias")
    },
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
GGUF_NAMES = {
    "embed.weight": "token_embd.weight",
    "attn_norm.weight": "blk.{i}.attn_norm.weight",
    **{
        f"attn.{x}.{kind}": f"blk.{{i}}.attn_{name}.{kind}"
        for x, name in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output"))
        for kind in ("weight", "bias")
    },
    "mlp_norm.weight": "blk.{i}.ffn_norm.weight",
    **{
        f"mlp.{x}.{kind}": f"blk.{{i}}.ffn_{x}.{kind}"
        for x in ("gate", "up", "down")
        for kind in ("weight", "bias")
    },
    "norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
}
_READ = HF_ROPE | frozenset({
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps", "hidden_act",
    "attention_bias", "mlp_bias",
})  # fmt: skip


def read_hf(
    values: Values,
    also_read: frozenset[str] = frozenset(),
    *,
    rope: Mapping[str, Any] | None = None,
    **fixed: Any,
) -> ModelConfig:
    """Returns the config of a Llama-like config.json, old or new; `fixed` fields win.

    `rope` are the keywords of `read_rope` that the class differs in. Raises ModelFileError
    naming the key for what this family does not compute.
    """
    layer_types = values.get("layer_types")
    if isinstance(layer_types, list) and all(t == "full_attention" for t in layer_types):
        also_read = also_read | {"layer_types"}
    refuse_unknown(values, _READ | also_read)
    heads, d_model = hf_number(values, "num_attention_heads"), hf_number(values, "hidden_size")
    if heads < 1:
        raise ModelFileError(f"num_attention_heads is {heads}", where="config.json")
    bias = hf_flag(values, "attention_bias")
    head_dim = fixed.pop("head_dim", None) or hf_number(values, "head_dim", d_model // heads)
    chosen: dict[str, Any] = {
        "norm_eps": float(hf_number(values, "rms_norm_eps", 1e-6)),
        "activation": hf_activation(values, "hidden_act", "silu"),
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": hf_flag(values, "mlp_bias"),
        "tie_embeddings": hf_flag(values, "tie_word_embeddings"),
        "n_kv_heads": hf_number(values, "num_key_value_heads", heads),
        **read_rope(values, head_dim, **(rope or {})),
        **hf_token_ids(values),
        **fixed,
    }
    return ModelConfig.uniform(
        n_layers=hf_number(values, "num_hidden_layers"),
        d_model=d_model,
        n_heads=heads,
        head_dim=head_dim,
        d_ff=hf_number(values, "intermediate_size"),
        vocab_size=hf_number(values, "vocab_size"),
        **chosen,
    )


def write_hf(config: ModelConfig, architecture: str, model_type: str) -> dict[str, Any]:
    """Returns config.json for a Llama-like model, readable by old and new programs."""
    layer = config.layers[0]
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": config.d_model,
        "intermediate_size": layer.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": layer.n_heads,
        "num_key_value_heads": layer.n_kv_heads,
        "head_dim": layer.head_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        **write_rope(config),
        "hidden_act": activation_name(config.activation),
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_embeddings,
        **hf_token_keys(config),
    }


def gguf_reader(
    architecture: str, *, partial: bool = False, **fixed: Any
) -> Callable[[Values, frozenset[str]], ModelConfig]:
    """Returns a reader of GGUF keys; which biases there are is seen in the tensors' names.

    `partial`: the architecture can rotate a part of a head. `fixed` fields win.
    """

    def read(keys: Values, names: frozenset[str]) -> ModelConfig:
        a, heads = architecture + ".", keys[f"{architecture}.attention.head_count"]
        d_model = keys[a + "embedding_length"]
        head_dim = keys.get(a + "attention.key_length", d_model // heads)
        if keys.get(a + "attention.value_length", head_dim) != head_dim:
            shown = keys[a + "attention.value_length"]
            raise ModelFileError(f"{a}attention.value_length is {shown!r:.20}, not {head_dim}")
        chosen = {
            "norm_eps": plain_float(keys[a + "attention.layer_norm_rms_epsilon"]),
            "qkv_bias": "blk.0.attn_q.bias" in names,
            "o_bias": "blk.0.attn_output.bias" in names,
            "mlp_bias": "blk.0.ffn_up.bias" in names,
            "tie_embeddings": "output.weight" not in names,
            **read_gguf_rope(keys, a, head_dim, partial=partial),
            **{k: keys[k] for k in ("vocab_size", "bos_id", "eos_ids", "pad_id")},
            **fixed,
        }
        return ModelConfig.uniform(
            n_layers=keys[a + "block_count"],
            d_model=d_model,
            n_heads=heads,
            n_kv_heads=keys.get(a + "attention.head_count_kv", heads),
            head_dim=head_dim,
            d_ff=keys[a + "feed_forward_length"],
            **chosen,
        )

    return read


def gguf_writer(architecture: str) -> Callable[[ModelConfig], dict[str, Any]]:
    """Returns a writer of the GGUF keys that llama.cpp reads for `architecture`."""

    def write(config: ModelConfig) -> dict[str, Any]:
        a, layer = architecture + ".", config.layers[0]
        return {
            a + "embedding_length": config.d_model,
            a + "block_count": config.n_layers,
            a + "feed_forward_length": layer.d_ff,
            a + "attention.head_count": layer.n_heads,
            a + "attention.head_count_kv": layer.n_kv_heads,
            a + "attention.key_length": layer.head_dim,
            a + "attention.value_length": layer.v_head_dim,
            a + "attention.layer_norm_rms_epsilon": float(config.norm_eps),
            a + "vocab_size": config.vocab_size,
            **write_gguf_rope(config, a),
        }

    return write


def hf_misfit(config: ModelConfig) -> str | None:
    """Returns why `transformers` would not take folders of Llama-like classes."""
    if config.d_model % config.layers[0].n_heads:  # it checks that, head_dim or not
        return f"d_model {config.d_model} is no multiple of {config.layers[0].n_heads} heads"
    return None


def biases_misfit(config: ModelConfig) -> str | None:
    """Returns why GGUF files of Llama's kind do not have the biases of `config`."""
    if config.qkv_bias != config.o_bias:  # it would load; Qwen 2 is what programs expect then
        return "biases on q, k, v and on the output go together"
    return None


def _gguf_misfit(config: ModelConfig) -> str | None:
    scaling = config.rope_scaling
    if scaling is not None and scaling.short_factors != scaling.long_factors:
        return "two sets of factors are what files of Phi 3 have"  # these would load all the same
    return biases_misfit(config)


LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    model_types=("llama",),
    hf_names=HF_NAMES,
    config_from_hf=read_hf,
    config_to_hf=lambda config: write_hf(config, "LlamaForCausalLM", "llama"),
    hf_misfit=hf_misfit,
    hf_ignored=("rotary_emb.inv_freq",),
    gguf_architecture="llama",
    gguf_names=GGUF_NAMES,
    gguf_keys=GGUF_ROPE,
    config_from_gguf=gguf_reader("llama"),
    config_to_gguf=gguf_writer("llama"),
    gguf_misfit=_gguf_misfit,
    permuted=True,
)
