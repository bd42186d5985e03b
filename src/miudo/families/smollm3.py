"""SmolLM3: Llama in which every fourth layer has no rotation.

For: `SmolLM3ForCausalLM` folders and GGUF "smollm3".
Not for: its windows, which no published model uses: they are refused.
Read next: `miudo.families.llama`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from miudo.config import ModelConfig, RopeKind
from miudo.errors import ModelFileError
from miudo.families.family import Family, Values, hf_flag, hf_number
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
from miudo.families.rope import scaling_misfit

__all__ = ["SMOLLM3"]

_READ = frozenset({
    "no_rope_layers", "no_rope_layer_interval", "use_sliding_window", "sliding_window",
    "max_window_layers",
})  # fmt: skip
_EVERY = 4


def _every(n_layers: int, step: int = _EVERY) -> list[bool]:
    return [(i + 1) % step != 0 for i in range(n_layers)]


def _rotating(config: ModelConfig, rotary: Sequence[object]) -> ModelConfig:
    layers = tuple(
        dataclasses.replace(layer, rotary=bool(on))
        for layer, on in zip(config.layers, rotary, strict=True)
    )
    return dataclasses.replace(config, layers=layers)


def _read(values: Values) -> ModelConfig:
    if hf_flag(values, "use_sliding_window"):
        raise ModelFileError("use_sliding_window is not computed", where="config.json")
    config = read_hf(
        values,
        _READ,
        rope={"theta": 2e6, "positions": 32768},
        tie_embeddings=hf_flag(values, "tie_word_embeddings", default=True),
        n_kv_heads=hf_number(values, "num_key_value_heads", 4),
    )
    rotary = values.get("no_rope_layers")  # despite its name, 1 where a layer rotates
    if rotary is None:
        step = hf_number(values, "no_rope_layer_interval", _EVERY)
        rotary = _every(config.n_layers, max(int(step), 1))
    fits = isinstance(rotary, list) and len(rotary) >= config.n_layers
    if not fits or any(on not in (0, 1) for on in rotary):
        shown = f"no_rope_layers {rotary!r:.100}"
        raise ModelFileError(f"{shown} do not fit {config.n_layers} layers", where="config.json")
    return _rotating(config, rotary[: config.n_layers])


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_hf(config, "SmolLM3ForCausalLM", "smollm3"),
        "no_rope_layers": [int(layer.rotary) for layer in config.layers],
        "no_rope_layer_interval": _EVERY,
        "use_sliding_window": False,
        "layer_types": ["full_attention"] * config.n_layers,
    }


def _read_gguf(keys: Values, names: frozenset[str]) -> ModelConfig:
    config = gguf_reader("smollm3")(keys, names)
    return _rotating(config, _every(config.n_layers))  # llama.cpp knows no other step


SMOLLM3 = Family(
    name="smollm3",
    architectures=("SmolLM3ForCausalLM",),
    model_types=("smollm3",),
    hf_names=HF_NAMES,
    config_from_hf=_read,
    config_to_hf=_write,
    hf_ignored=("rotary_emb.inv_freq",),
    gguf_architecture="smollm3",
    gguf_names=GGUF_NAMES,
    gguf_keys=GGUF_ROPE,
    config_from_gguf=_read_gguf,
    config_to_gguf=gguf_writer("smollm3"),
    gguf_misfit=lambda c: biases_misfit(c) or scaling_misfit(c, RopeKind.LINEAR, RopeKind.YARN),
    permuted=True,
)
