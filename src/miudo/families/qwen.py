"""Qwen2 and Qwen3: Llama with biases on q, k, v, or with a norm on each query and key head.

For: `Qwen2ForCausalLM`, `Qwen3ForCausalLM` folders and GGUF "qwen2", "qwen3".
Not for: mixtures of experts, which have other architecture names.
Read next: `miudo.families.llama`, whose readers these use.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from miudo.config import ModelConfig, QkNorm, RopeKind
from miudo.errors import ModelFileError
from miudo.families.family import Family, Values, hf_flag, hf_number
from miudo.families.gguf_rope import GGUF_ROPE
from miudo.families.llama import (
    GGUF_NAMES,
    HF_NAMES,
    gguf_reader,
    gguf_writer,
    read_hf,
    write_hf,
)
from miudo.families.rope import scaling_misfit

__all__ = ["QWEN2", "QWEN3"]

_NORMS_HF = {f"attn.{x}_norm.weight": f"model.layers.{{i}}.self_attn.{x}_norm.weight" for x in "qk"}
_NORMS_GGUF = {f"attn.{x}_norm.weight": f"blk.{{i}}.attn_{x}_norm.weight" for x in "qk"}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_READ = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})


def _read(values: Values, **fixed: Any) -> ModelConfig:
    config = read_hf(values, _READ, **fixed)
    if not hf_flag(values, "use_sliding_window") or values.get("sliding_window") is None:
        return config  # a window that is stated but not used, as in most published files
    types = values.get("layer_types")
    if types is None:
        first = hf_number(values, "max_window_layers", 28)
        types = [_FULL if i < first else _SLIDING for i in range(config.n_layers)]
    known = isinstance(types, list) and all(t in (_FULL, _SLIDING) for t in types)
    if not known or len(types) != config.n_layers:
        raise ModelFileError(
            f"layer_types {types!r:.200} do not fit {config.n_layers} layers", where="config.json"
        )
    window = values["sliding_window"]
    layers = tuple(
        dataclasses.replace(layer, window=window if kind == _SLIDING else None)
        for layer, kind in zip(config.layers, types, strict=True)
    )
    return dataclasses.replace(config, layers=layers)


def _write(config: ModelConfig, architecture: str, model_type: str) -> dict[str, Any]:
    windows = [layer.window for layer in config.layers]
    width = next((w for w in windows if w is not None), None)
    return {
        **write_hf(config, architecture, model_type),
        "use_sliding_window": width is not None,
        "sliding_window": width,
        # What programs that do not read layer_types take: exact if the windows come last.
        "max_window_layers": next((i for i, w in enumerate(windows) if w), config.n_layers),
        "layer_types": [_FULL if w is None else _SLIDING for w in windows],
    }


_GGUF: dict[str, Any] = {
    "gguf_keys": GGUF_ROPE,
    "gguf_misfit": lambda c: scaling_misfit(c, RopeKind.LINEAR, RopeKind.YARN),
}

QWEN2 = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    model_types=("qwen2",),
    hf_names=HF_NAMES,
    config_from_hf=lambda v: _read(v, qkv_bias=True, o_bias=False, mlp_bias=False),
    config_to_hf=lambda config: _write(config, "Qwen2ForCausalLM", "qwen2"),
    hf_ignored=("rotary_emb.inv_freq",),
    gguf_architecture="qwen2",
    gguf_names=GGUF_NAMES,
    config_from_gguf=gguf_reader("qwen2", qkv_bias=True, o_bias=False, mlp_bias=False),
    config_to_gguf=gguf_writer("qwen2"),
    **_GGUF,
)

QWEN3 = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    model_types=("qwen3",),
    hf_names=HF_NAMES | _NORMS_HF,
    # Unlike the other classes, this one does not derive an absent head size from d_model.
    config_from_hf=lambda v: _read(
        v, qk_norm=QkNorm.HEAD, mlp_bias=False, head_dim=hf_number(v, "head_dim", 128)
    ),
    config_to_hf=lambda config: _write(config, "Qwen3ForCausalLM", "qwen3"),
    hf_ignored=("rotary_emb.inv_freq",),
    gguf_architecture="qwen3",
    gguf_names=GGUF_NAMES | _NORMS_GGUF,
    config_from_gguf=gguf_reader(
        "qwen3", qk_norm=QkNorm.HEAD, qkv_bias=False, o_bias=False, mlp_bias=False
    ),
    config_to_gguf=gguf_writer("qwen3"),
    **_GGUF,
)
