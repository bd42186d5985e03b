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
from miudo.families.family import ACTIVATIONS, Family, Values, hf_number, hf_token_ids, refuse

__all__ = ["LLAMA", "gguf_reader", "gguf_writer", "is_uniform", "read_hf", "write_hf"]

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


def read_hf(values: Values, **fixed: Any) -> ModelConfig:
    """Returns the config of a Llama-like config.json, old or new; `fixed` fields win."""
    refuse(values, {"use_sliding_window": (False, None), "pretraining_tp": (1, None)})
    heads, d_model = hf_number(values, "num_attention_heads"), hf_number(values, "hidden_size")
    activation = ACTIVATIONS.get(values.get("hidden_act", "silu"))
    if activation is None:
        raise ModelFileError(f"hidden_act {values['hidden_act']!r} is unknown", where="config.json")
    if heads < 1:
        raise ModelFileError(f"num_attention_heads is {heads}", where="config.json")
    bias = bool(values.get("attention_bias", False))
    chosen: dict[str, Any] = {
        "norm_eps": float(hf_number(values, "rms_norm_eps", 1e-6)),
        "activation": activation,
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": bool(values.get("mlp_bias", False)),
        "tie_embeddings": bool(values.get("tie_word_embeddings", False)),
        **hf_token_ids(values),
        **fixed,
    }
    return ModelConfig.uniform(
        n_layers=hf_number(values, "num_hidden_layers"),
        d_model=d_model,
        n_heads=heads,
        n_kv_heads=hf_number(values, "num_key_value_heads", heads),
        head_dim=hf_number(values, "head_dim", d_model // heads),
        d_ff=hf_number(values, "intermediate_size"),
        rope_theta=_rope_theta(values),
        vocab_size=hf_number(values, "vocab_size"),
        max_positions=hf_number(values, "max_position_embeddings", 2048),
        **chosen,
    )


def _rope_theta(values: Values) -> float:
    new, old = values.get("rope_parameters"), values.get("rope_scaling")
    for scaling in (new, old):
        if scaling is None:
            continue
        if not isinstance(scaling, dict):
            raise ModelFileError("rope parameters are no object", where="config.json")
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        partial = scaling.get("partial_rotary_factor", 1.0)
        if kind != "default" or partial != 1.0:
            raise ModelFileError(
                f"rotary scaling {kind!r} (share {partial}) is not computed by this miudo",
                where="config.json",
                remedy="Use a model with plain rotary positions",
            )
    theta = (new or {}).get("rope_theta", values.get("rope_theta"))
    return float(hf_number({"rope_theta": theta}, "rope_theta", 10000.0))


def write_hf(config: ModelConfig, architecture: str, model_type: str) -> dict[str, Any]:
    """Returns config.json for a Llama-like model, readable by old and new programs."""
    layer = config.layers[0]
    eos: Any = list(config.eos_ids) or None
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
        "hidden_act": _hf_activation(config.activation),
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if eos and len(eos) == 1 else eos,
        "pad_token_id": config.pad_id,
    }


def _hf_activation(activation: Activation) -> str:
    return "gelu_pytorch_tanh" if activation is Activation.GELU_TANH else activation.value


def gguf_reader(architecture: str, **fixed: Any) -> Callable[[Values, frozenset[str]], ModelConfig]:
    """Returns a reader of GGUF keys; which biases there are is seen in the tensors' names."""

    def read(keys: Values, names: frozenset[str]) -> ModelConfig:
        a, heads = architecture + ".", keys[f"{architecture}.attention.head_count"]
        d_model = keys[a + "embedding_length"]
        if keys.get(a + "rope.scaling.type", "none") != "none":
            raise ModelFileError("scaled rotary positions are not computed by this miudo")
        return ModelConfig.uniform(
            n_layers=keys[a + "block_count"],
            d_model=d_model,
            n_heads=heads,
            n_kv_heads=keys.get(a + "attention.head_count_kv", heads),
            head_dim=keys.get(a + "attention.key_length", d_model // heads),
            d_ff=keys[a + "feed_forward_length"],
            rope_theta=float(keys.get(a + "rope.freq_base", 10000.0)),
            max_positions=keys[a + "context_length"],
            norm_eps=_plain(keys[a + "attention.layer_norm_rms_epsilon"]),
            qkv_bias="blk.0.attn_q.bias" in names,
            o_bias="blk.0.attn_output.bias" in names,
            mlp_bias="blk.0.ffn_up.bias" in names,
            tie_embeddings="output.weight" not in names,
            **fixed,
            **{k: keys[k] for k in ("vocab_size", "bos_id", "eos_ids", "pad_id")},
        )

    return read


def _plain(value: float) -> float:
    """A float32 of a file as the decimal that was meant: 1e-5, not 9.99999974e-6."""
    return float(f"{value:.7g}")


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
            a + "attention.layer_norm_rms_epsilon": config.norm_eps,
            a + "rope.freq_base": layer.rope_theta,
            a + "rope.dimension_count": layer.head_dim,
            a + "vocab_size": config.vocab_size,
        }

    return write


def is_uniform(config: ModelConfig) -> bool:
    """Whether all layers are alike, rotary and full: what Llama-like files can say."""
    first = config.layers[0]
    return (
        all(layer == first for layer in config.layers)
        and config.norm is Norm.RMS
        and config.position is Position.ROPE
        and config.mlp is Mlp.GATED
        and first.rotary
        and first.window is None
        and first.v_head_dim == first.head_dim
    )


def _expresses(config: ModelConfig) -> bool:
    plain = config.qk_norm is QkNorm.NONE and config.qkv_bias == config.o_bias
    return is_uniform(config) and plain


LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    model_types=("llama",),
    gguf_architecture="llama",
    hf_names=HF_NAMES,
    gguf_names=GGUF_NAMES,
    expresses=_expresses,
    config_from_hf=read_hf,
    config_to_hf=lambda config: write_hf(config, "LlamaForCausalLM", "llama"),
    config_from_gguf=gguf_reader("llama"),
    config_to_gguf=gguf_writer("llama"),
    hf_ignored=("rotary_emb.inv_freq",),
    permuted=True,
)
