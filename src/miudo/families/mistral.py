"""Mistral: Llama without biases, in which every layer may attend to a window.

For: `MistralForCausalLM` folders (Mistral 7B, Mistral Nemo); GGUF files of these are "llama".
Not for: Ministral's layers in turn with and without a window, which are refused.
Read next: `miudo.families.llama`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from miudo.config import ModelConfig
from miudo.families.family import Family, Values, hf_number, refuse
from miudo.families.llama import HF_NAMES, read_hf, write_hf

__all__ = ["MISTRAL", "with_window"]

_WINDOW = 4096  # of a file that has no such key; null means none


def with_window(config: ModelConfig, window: int | None) -> ModelConfig:
    """Returns `config` with `window` on all layers, none where no text can be longer."""
    if window is None or window >= config.max_positions:
        return config
    layers = tuple(dataclasses.replace(layer, window=window) for layer in config.layers)
    return dataclasses.replace(config, layers=layers)


def _read(values: Values) -> ModelConfig:
    refuse(values, {"layer_types": (None,)})
    config = read_hf(
        values,
        frozenset({"sliding_window"}),
        rope={"positions": 131072},
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        n_kv_heads=hf_number(values, "num_key_value_heads", 8),
    )
    given = values.get("sliding_window", _WINDOW)
    return with_window(
        config, None if given is None else hf_number(values, "sliding_window", given)
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_hf(config, "MistralForCausalLM", "mistral"),
        "sliding_window": config.layers[0].window,
    }


MISTRAL = Family(
    name="mistral",
    architectures=("MistralForCausalLM",),
    model_types=("mistral",),
    hf_names=HF_NAMES,
    config_from_hf=_read,
    config_to_hf=_write,
    hf_ignored=("rotary_emb.inv_freq",),
)
