"""Granite 3: Llama with four multipliers, of embeddings, sublayers, scores and logits.

For: `GraniteForCausalLM` folders and GGUF "granite"; folders of MiniCPM 1 and 2 are written so.
Not for: Granite 4, whose class mixes attention with another kind of layer.
Read next: `miudo.families.minicpm`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from miudo.config import ModelConfig
from miudo.errors import ModelFileError
from miudo.families.family import Family, Values, hf_number, plain_float, single
from miudo.families.gguf_rope import GGUF_ROPE
from miudo.families.llama import (
    GGUF_NAMES,
    HF_NAMES,
    biases_misfit,
    gguf_reader,
    gguf_writer,
    read_hf,
    write_hf,
)

__all__ = ["GGUF_SCALES", "GRANITE", "gguf_scales", "write_granite"]

_MULTIPLIERS = (
    "embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling",
)  # fmt: skip
GGUF_SCALES = frozenset({"embedding_scale", "residual_scale", "logit_scale"})
"""Keys that hold the multipliers of Granite and MiniCPM."""


def _read(values: Values) -> ModelConfig:
    embed, residual, scores, logits = (float(hf_number(values, m, 1.0)) for m in _MULTIPLIERS)
    if not logits:
        raise ModelFileError("logits_scaling is 0", where="config.json")
    config = read_hf(
        values,
        frozenset(_MULTIPLIERS),
        embed_scale=embed,
        residual_scale=residual,
        logit_scale=1 / logits,
    )
    return _with_scores(config, scores)


def _with_scores(config: ModelConfig, scale: float) -> ModelConfig:
    """With the multiplier of scores, unless it is the one that they have of themselves."""
    usual = single(scale) == single(config.layers[0].head_dim ** -0.5)
    return config if usual else dataclasses.replace(config, attn_scale=scale)


def _scores(config: ModelConfig) -> float:
    scale = config.attn_scale
    return config.layers[0].head_dim ** -0.5 if scale is None else float(scale)


def write_granite(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json of a Granite folder."""
    return {
        **write_hf(config, "GraniteForCausalLM", "granite"),
        "embedding_multiplier": config.embed_scale,
        "residual_multiplier": config.residual_scale,
        "attention_multiplier": _scores(config),
        "logits_scaling": single(1 / config.logit_scale),
    }


def gguf_scales(config: ModelConfig, a: str) -> dict[str, Any]:
    """Returns the keys of the multipliers that Granite and MiniCPM share; logits are divided."""
    return {
        a + "embedding_scale": float(config.embed_scale),
        a + "residual_scale": float(config.residual_scale),
        a + "logit_scale": single(1 / config.logit_scale),
    }


def _read_gguf(keys: Values, names: frozenset[str]) -> ModelConfig:
    if keys.get("granite.rope.scaling.finetuned") is False:
        raise ModelFileError("has no rotation", where="granite.rope.scaling.finetuned")
    read = gguf_reader(
        "granite",
        embed_scale=plain_float(keys.get("granite.embedding_scale", 0.0)) or 1.0,
        residual_scale=plain_float(keys.get("granite.residual_scale", 0.0)) or 1.0,
        logit_scale=1 / plain_float(keys["granite.logit_scale"]),
    )
    config = read(keys, names)
    scores = plain_float(keys.get("granite.attention.scale", 0.0))
    return _with_scores(config, scores) if scores else config


def _write_gguf(config: ModelConfig) -> dict[str, Any]:
    keys = gguf_writer("granite")(config) | gguf_scales(config, "granite.")
    return keys | {"granite.attention.scale": _scores(config)}


GRANITE = Family(
    name="granite",
    architectures=("GraniteForCausalLM",),
    model_types=("granite",),
    hf_names=HF_NAMES,
    config_from_hf=_read,
    config_to_hf=write_granite,
    hf_ignored=("rotary_emb.inv_freq",),
    gguf_architecture="granite",
    gguf_names=GGUF_NAMES,
    gguf_keys=GGUF_ROPE | GGUF_SCALES | {"attention.scale"},
    config_from_gguf=_read_gguf,
    config_to_gguf=_write_gguf,
    gguf_misfit=biases_misfit,
    permuted=True,
)
