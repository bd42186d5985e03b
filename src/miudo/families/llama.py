"""Llama: RMS norm, rotary positions, gated feed-forward (Touvron et al. 2023).

For: `LlamaForCausalLM` folders (Llama, TinyLlama, MobileLLaMA, Fox, SmolLM2) and GGUF "llama".
Not for: scaled rotary positions, which are refused by name until they are a switch.
Read next: `miudo.families.qwen`, which differs in biases and norms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from miudo.config import Activation, Mlp, ModelConfig, Norm, Position, QkNorm
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

__all__ = [
    "GGUF_NAMES",
    "HF_NAMES",
    "LLAMA",
    "gguf_reader",
    "gguf_writer",
    "misfit",
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
_READ = frozenset({
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps",
    "hidden_act", "attention_bias", "mlp_bias", "rope_theta", "rope_scaling", "rope_parameters",
    "partial_rotary_factor",
})  # fmt: skip


def read_hf(values: Values, also_read: frozenset[str] = frozenset(), **fixed: Any) -> ModelConfig:
    """Returns the config of a Llama-like config.json, old or new; `fixed` fields win.

    Raises ModelFileError naming the key for what this family does not compute.
    """
    layer_types = values.get("layer_types")
    if isinstance(layer_types, list) and all(t == "full_attention" for t in layer_types):
        also_read = also_read | {"layer_types"}
    refuse_unknown(values, _READ | also_read)
    heads, d_model = hf_number(values, "num_attention_heads"), hf_number(values, "hidden_size")
    if heads < 1:
        raise ModelFileError(f"num_attention_heads is {heads}", where="config.json")
    bias = hf_flag(values, "attention_bias")
    chosen: dict[str, Any] = {
        "norm_eps": float(hf_number(values, "rms_norm_eps", 1e-6)),
        "activation": hf_activation(values, "hidden_act", "silu"),
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": hf_flag(values, "mlp_bias"),
        "tie_embeddings": hf_flag(values, "tie_word_embeddings"),
        "head_dim": hf_number(values, "head_dim", d_model // heads),
        **hf_token_ids(values),
        **fixed,
    }
    return ModelConfig.uniform(
        n_layers=hf_number(values, "num_hidden_layers"),
        d_model=d_model,
        n_heads=heads,
        n_kv_heads=hf_number(values, "num_key_value_heads", heads),
        d_ff=hf_number(values, "intermediate_size"),
        rope_theta=_rope_theta(values),
        vocab_size=hf_number(values, "vocab_size"),
        max_positions=hf_number(values, "max_position_embeddings", 2048),
        **chosen,
    )


def _rope_theta(values: Values) -> float:
    """Old files say `rope_theta` and `rope_scaling`, new ones one `rope_parameters`."""
    new, old = values.get("rope_parameters"), values.get("rope_scaling")
    for scaling in (new, old, {"partial_rotary_factor": values.get("partial_rotary_factor")}):
        if scaling is None:
            continue
        if not isinstance(scaling, dict):
            raise ModelFileError("rope parameters are no object", where="config.json")
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        share = scaling.get("partial_rotary_factor")
        if kind != "default" or share not in (None, 1.0):
            raise ModelFileError(
                f"rotary scaling {kind!r:.60} (share {share!r:.20}) is not computed by this miudo",
                where="config.json: rope_scaling",
                remedy="Use a model with plain rotary positions",
            )
    theta = (new or {}).get("rope_theta", values.get("rope_theta"))
    return float(hf_number({"rope_theta": theta}, "rope_theta", 10000.0))


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
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": layer.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": layer.rope_theta},
        "hidden_act": activation_name(config.activation),
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_embeddings,
        **hf_token_keys(config),
    }


def gguf_reader(architecture: str, **fixed: Any) -> Callable[[Values, frozenset[str]], ModelConfig]:
    """Returns a reader of GGUF keys; which biases there are is seen in the tensors' names."""

    def read(keys: Values, names: frozenset[str]) -> ModelConfig:
        a, heads = architecture + ".", keys[f"{architecture}.attention.head_count"]
        d_model = keys[a + "embedding_length"]
        head_dim = keys.get(a + "attention.key_length", d_model // heads)
        for same in ("attention.value_length", "rope.dimension_count"):
            if keys.get(a + same, head_dim) != head_dim:
                raise ModelFileError(f"{a}{same} is {keys[a + same]!r:.20}, not {head_dim}")
        return ModelConfig.uniform(
            n_layers=keys[a + "block_count"],
            d_model=d_model,
            n_heads=heads,
            n_kv_heads=keys.get(a + "attention.head_count_kv", heads),
            head_dim=head_dim,
            d_ff=keys[a + "feed_forward_length"],
            rope_theta=plain_float(keys.get(a + "rope.freq_base", 10000.0)),
            max_positions=keys[a + "context_length"],
            norm_eps=plain_float(keys[a + "attention.layer_norm_rms_epsilon"]),
            qkv_bias="blk.0.attn_q.bias" in names,
            o_bias="blk.0.attn_output.bias" in names,
            mlp_bias="blk.0.ffn_up.bias" in names,
            tie_embeddings="output.weight" not in names,
            **fixed,
            **{k: keys[k] for k in ("vocab_size", "bos_id", "eos_ids", "pad_id")},
        )

    return read


def gguf_writer(architecture: str) -> Callable[[ModelConfig], dict[str, Any]]:
    """Returns a writer of the GGUF keys that llama.cpp reads for `architecture`."""

    def write(config: ModelConfig) -> dict[str, Any]:
        a, layer = architecture + ".", config.layers[0]
        return {
            a + "context_length": config.max_positions,
            a + "embedding_length": config.d_model,
            a + "block_count": config.n_layers,
            a + "feed_forward_length": layer.d_ff,
            a + "attention.head_count": layer.n_heads,
            a + "attention.head_count_kv": layer.n_kv_heads,
            a + "attention.key_length": layer.head_dim,
            a + "attention.value_length": layer.v_head_dim,
            a + "attention.layer_norm_rms_epsilon": float(config.norm_eps),
            a + "rope.freq_base": float(layer.rope_theta),
            a + "rope.dimension_count": layer.head_dim,
            a + "vocab_size": config.vocab_size,
        }

    return write


def misfit(config: ModelConfig, *, windows: bool = False, gguf: bool = False) -> str | None:
    """Returns why Llama-like files cannot say `config`, None if they can.

    `windows`: some layers may attend to a window. GGUF names no activation: SiLU is meant.
    """
    first = config.layers[0]
    if config.norm is not Norm.RMS or config.position is not Position.ROPE:
        return f"norm is {config.norm}, positions are {config.position}"
    if config.mlp is not Mlp.GATED:
        return "the feed-forward is not gated"
    if gguf and config.activation is not Activation.SILU:
        return f"the activation is {config.activation}"
    for i, layer in enumerate(config.layers):
        if (layer.n_heads, layer.n_kv_heads, layer.head_dim, layer.d_ff, layer.rope_theta) != (
            (first.n_heads, first.n_kv_heads, first.head_dim, first.d_ff, first.rope_theta)
        ):
            return f"layer {i} differs from layer 0"
        if layer.v_head_dim != layer.head_dim:
            return f"layer {i} has value heads of another size"
        if not layer.rotary:
            return f"layer {i} has no rotation"
        if layer.window is not None and not windows:
            return f"layer {i} attends to a window"
    return None


def _misfit(config: ModelConfig) -> str | None:
    if config.qk_norm is not QkNorm.NONE:
        return "it has query and key norms"
    if config.qkv_bias != config.o_bias:
        return "biases on q, k, v and on the output go together"
    return None


def _hf_misfit(config: ModelConfig) -> str | None:
    if config.d_model % config.layers[0].n_heads:  # transformers checks it, head_dim or not
        return f"d_model {config.d_model} is no multiple of {config.layers[0].n_heads} heads"
    return misfit(config) or _misfit(config)


LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    model_types=("llama",),
    gguf_architecture="llama",
    hf_names=HF_NAMES,
    gguf_names=GGUF_NAMES,
    hf_misfit=_hf_misfit,
    gguf_misfit=lambda c: misfit(c, gguf=True) or _misfit(c),
    config_from_hf=read_hf,
    config_to_hf=lambda config: write_hf(config, "LlamaForCausalLM", "llama"),
    config_from_gguf=gguf_reader("llama"),
    config_to_gguf=gguf_writer("llama"),
    hf_ignored=("rotary_emb.inv_freq",),
    permuted=True,
)
