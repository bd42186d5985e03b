"""MiniCPM 1B and 2B: Llama with scaled embeddings, sublayers and logits (Hu et al. 2024).

For: `MiniCPMForCausalLM` folders and GGUF "minicpm". Folders are written as Granite's, which say
the same and need no code of a folder's own.
Not for: its kin with experts, sparse attention or thresholds, which are refused.
Read next: `miudo.families.granite`.
"""

from __future__ import annotations

from typing import Any

from miudo.config import ModelConfig
from miudo.families.family import Family, Values, hf_flag, hf_number, plain_float, refuse
from miudo.families.gguf_rope import GGUF_ROPE
from miudo.families.granite import GGUF_SCALES, gguf_scales, write_granite
from miudo.families.llama import GGUF_NAMES, HF_NAMES, gguf_reader, gguf_writer, read_hf

__all__ = ["MINICPM", "MINICPM_KEYS", "scales", "usual_scales"]

MINICPM_KEYS = frozenset({"scale_emb", "scale_depth", "dim_model_base"})
_NO_BIAS: dict[str, Any] = {"qkv_bias": False, "o_bias": False, "mlp_bias": False}
_VARIANTS: dict[str, tuple[object, ...]] = {
    "sparse_config": (None,),
    "num_experts": (None, 0),
    "is_causal": (True, None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
}


def scales(values: Values, defaults: Values | None = None) -> dict[str, Any]:
    """Returns the scales of a config.json; without `defaults` none may be absent."""
    d_model, n_layers = hf_number(values, "hidden_size"), hf_number(values, "num_hidden_layers")
    given = {key: hf_number(values, key, (defaults or {}).get(key)) for key in MINICPM_KEYS}
    return {
        "embed_scale": float(given["scale_emb"]),
        "residual_scale": given["scale_depth"] / max(n_layers, 1) ** 0.5,
        "logit_scale": given["dim_model_base"] / max(d_model, 1),
    }


def usual_scales(keys: Values, a: str) -> dict[str, Any]:
    """Returns the scales of the published models, which GGUF files may leave out."""
    return {
        "embed_scale": 12.0,
        "residual_scale": 1.4 / max(keys[a + "block_count"], 1) ** 0.5,
        "logit_scale": 256 / max(keys[a + "embedding_length"], 1),
    }


def _read(values: Values) -> ModelConfig:
    refuse(values, _VARIANTS)
    return read_hf(
        values,
        MINICPM_KEYS | _VARIANTS.keys(),
        tie_embeddings=hf_flag(values, "tie_word_embeddings", default=True),
        **scales(values),
    )


def _read_gguf(keys: Values, names: frozenset[str]) -> ModelConfig:
    held = usual_scales(keys, "minicpm.")
    for name, key in (("embed_scale", "embedding_scale"), ("residual_scale", "residual_scale")):
        if f"minicpm.{key}" in keys:
            held[name] = plain_float(keys[f"minicpm.{key}"])
    if "minicpm.logit_scale" in keys:  # what logits are divided by
        held["logit_scale"] = 1 / plain_float(keys["minicpm.logit_scale"])
    return gguf_reader("minicpm", **_NO_BIAS, **held)(keys, names)


MINICPM = Family(
    name="minicpm",
    architectures=("MiniCPMForCausalLM",),
    model_types=("minicpm",),
    hf_names=HF_NAMES,
    config_from_hf=_read,
    config_to_hf=write_granite,
    hf_misfit=lambda _: "folders of its class need code of their own",
    hf_ignored=("rotary_emb.inv_freq",),
    gguf_architecture="minicpm",
    gguf_names=GGUF_NAMES,
    gguf_keys=GGUF_ROPE | GGUF_SCALES,
    config_from_gguf=_read_gguf,
    config_to_gguf=lambda c: gguf_writer("minicpm")(c) | gguf_scales(c, "minicpm."),
    permuted=True,
)
