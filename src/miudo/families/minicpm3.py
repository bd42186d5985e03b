"""MiniCPM3: MiniCPM with queries, keys and values made from latents.

For: `MiniCPM3ForCausalLM` folders and GGUF "minicpm3".
Not for: the latents' arithmetic (`miudo.decoder.latent`).
Read next: `miudo.families.minicpm`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from miudo.config import LatentAttention, ModelConfig, RopeKind
from miudo.errors import ModelFileError
from miudo.families.family import Family, Values, hf_flag, hf_number, refuse
from miudo.families.gguf_rope import GGUF_ROPE
from miudo.families.llama import (
    GGUF_NAMES,
    HF_NAMES,
    gguf_reader,
    gguf_writer,
    hf_misfit,
    read_hf,
    write_hf,
)
from miudo.families.minicpm import MINICPM_KEYS, scales, usual_scales
from miudo.families.rope import scaling_misfit

__all__ = ["MINICPM3"]

_KEYS = MINICPM_KEYS | {
    "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
    "qk_head_dim",
}  # fmt: skip
_USUAL: dict[str, float] = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}
_PLAIN: dict[str, Any] = {"qkv_bias": False, "o_bias": False, "mlp_bias": False}
_IN_LAYER = "model.layers.{i}.self_attn."
_NARROW = {
    "q_a.weight": ("q_a_proj", "attn_q_a"),
    "q_a_norm.weight": ("q_a_layernorm", "attn_q_a_norm"),
    "q_b.weight": ("q_b_proj", "attn_q_b"),
    "kv_a.weight": ("kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    "kv_a_norm.weight": ("kv_a_layernorm", "attn_kv_a_norm"),
    "kv_b.weight": ("kv_b_proj", "attn_kv_b"),
}


def _latent(config: ModelConfig, latent: LatentAttention, v_head_dim: int) -> ModelConfig:
    """`config` of whole heads with values of their own size, made from latents."""
    layers = tuple(dataclasses.replace(c, v_head_dim=v_head_dim) for c in config.layers)
    return dataclasses.replace(config, layers=layers, latent=latent)


def _read(values: Values) -> ModelConfig:
    heads, d_model = hf_number(values, "num_attention_heads"), hf_number(values, "hidden_size")
    rope_dim = hf_number(values, "qk_rope_head_dim", 32)
    # There are as many keys as queries, and the class scales scores where yarn stretches.
    refuse(values, {"attention_bias": (False, None), "num_key_value_heads": (heads, None)})
    # null switches a scale off, an absent key means the published one.
    off = {"scale_depth": hf_number(values, "num_hidden_layers") ** 0.5, "dim_model_base": d_model}
    config = read_hf(
        values,
        _KEYS,
        rope={"positions": 32768},
        rotary_dim=rope_dim,
        head_dim=hf_number(values, "qk_nope_head_dim", 64) + rope_dim,
        tie_embeddings=hf_flag(values, "tie_word_embeddings", default=True),
        norm_eps=float(hf_number(values, "rms_norm_eps", 1e-5)),
        **scales(values, _USUAL | {k: v for k, v in off.items() if k in values}),
    )
    if scaling_misfit(config, RopeKind.LONGROPE):
        raise ModelFileError("only longrope is computed", where="config.json: rope_scaling")
    rank = None if values.get("q_lora_rank", 768) is None else hf_number(values, "q_lora_rank", 768)
    latent = LatentAttention(hf_number(values, "kv_lora_rank", 256), rope_dim, rank)
    return _latent(config, latent, hf_number(values, "v_head_dim", d_model // max(heads, 1)))


def _write(config: ModelConfig) -> dict[str, Any]:
    layer, latent = config.layers[0], _parts(config)
    # The class calls the rotated part a head.
    rotated = dataclasses.replace(
        layer, head_dim=latent.rope_dim, v_head_dim=latent.rope_dim, rotary_dim=None
    )
    whole = dataclasses.replace(config, latent=None, layers=(rotated,) * config.n_layers)
    return {
        **write_hf(whole, "MiniCPM3ForCausalLM", "minicpm3"),
        "q_lora_rank": latent.q_rank,
        "kv_lora_rank": latent.kv_rank,
        "qk_nope_head_dim": layer.head_dim - latent.rope_dim,
        "qk_rope_head_dim": latent.rope_dim,
        "v_head_dim": layer.v_head_dim,
        "scale_emb": config.embed_scale,
        "scale_depth": config.residual_scale * config.n_layers**0.5,
        "dim_model_base": round(config.logit_scale * config.d_model),
    }


def _parts(config: ModelConfig) -> LatentAttention:
    if config.latent is None:
        raise ModelFileError("it has no latents")
    return config.latent


def _read_gguf(keys: Values, names: frozenset[str]) -> ModelConfig:
    a = "minicpm3."
    heads, d_model = keys[a + "attention.head_count"], keys[a + "embedding_length"]
    v_head_dim = keys.get(a + "attention.value_length", d_model // heads)
    rope_dim = keys[a + "rope.dimension_count"]
    # Values are as long as keys until they get their own length below.
    plain = {k: v for k, v in keys.items() if k != a + "attention.value_length"}
    # llama.cpp knows no other scales.
    config = gguf_reader("minicpm3", partial=True, **_PLAIN, **usual_scales(keys, a))(plain, names)
    latent = LatentAttention(
        keys[a + "attention.kv_lora_rank"], rope_dim, keys[a + "attention.q_lora_rank"]
    )
    return _latent(config, latent, v_head_dim)


def _write_gguf(config: ModelConfig) -> dict[str, Any]:
    latent, a = _parts(config), "minicpm3."
    if latent.q_rank is None:
        raise ModelFileError("its queries come from no latent")
    return {
        **gguf_writer("minicpm3")(config),
        a + "attention.q_lora_rank": latent.q_rank,
        a + "attention.kv_lora_rank": latent.kv_rank,
    }


def _gguf_note(config: ModelConfig) -> str | None:
    eps = _parts(config).norm_eps
    if eps == config.norm_eps:
        return None
    return f"llama.cpp adds {config.norm_eps:g} in the norms of latents, the model {eps:g}"


MINICPM3 = Family(
    name="minicpm3",
    architectures=("MiniCPM3ForCausalLM",),
    model_types=("minicpm3",),
    hf_names=HF_NAMES | {f"attn.{k}": _IN_LAYER + v[0] + ".weight" for k, v in _NARROW.items()},
    config_from_hf=_read,
    config_to_hf=_write,
    hf_misfit=hf_misfit,
    hf_ignored=("rotary_emb.inv_freq",),
    gguf_architecture="minicpm3",
    gguf_names=GGUF_NAMES | {f"attn.{k}": f"blk.{{i}}.{v[1]}.weight" for k, v in _NARROW.items()},
    gguf_keys=GGUF_ROPE | {"attention.q_lora_rank", "attention.kv_lora_rank"},
    config_from_gguf=_read_gguf,
    config_to_gguf=_write_gguf,
    gguf_misfit=lambda c: scaling_misfit(c, RopeKind.LONGROPE),
    gguf_note=_gguf_note,
)
