"""Qwen2 and Qwen3: Llama with biases on q, k, v, or with a norm on each query and key head.

For: `Qwen2ForCausalLM`, `Qwen3ForCausalLM` folders and GGUF "qwen2", "qwen3".
Not for: sliding windows on some layers, which are refused.
Read next: `miudo.families.llama`, whose readers these use.
"""

from __future__ import annotations

from typing import Any

from miudo.config import ModelConfig, QkNorm
from miudo.families.family import Family, Values
from miudo.families.llama import (
    GGUF_NAMES,
    HF_NAMES,
    gguf_reader,
    gguf_writer,
    is_uniform,
    read_hf,
    write_hf,
)

__all__ = ["QWEN2", "QWEN3"]

_NORMS_HF = {f"attn.{x}_norm.weight": f"model.layers.{{i}}.self_attn.{x}_norm.weight" for x in "qk"}
_NORMS_GGUF = {f"attn.{x}_norm.weight": f"blk.{{i}}.attn_{x}_norm.weight" for x in "qk"}


def _read_qwen2(values: Values) -> ModelConfig:
    return read_hf(values, qkv_bias=True, o_bias=False, mlp_bias=False)


def _write_qwen2(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_hf(config, "Qwen2ForCausalLM", "qwen2"),
        "use_sliding_window": False,
        "sliding_window": None,
    }


def _write_qwen3(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_hf(config, "Qwen3ForCausalLM", "qwen3"),
        "use_sliding_window": False,
        "sliding_window": None,
    }


QWEN2 = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    model_types=("qwen2",),
    gguf_architecture="qwen2",
    hf_names=HF_NAMES,
    gguf_names=GGUF_NAMES,
    expresses=lambda c: (
        is_uniform(c)
        and c.qk_norm is QkNorm.NONE
        and c.qkv_bias
        and not c.o_bias
        and not c.mlp_bias
    ),
    config_from_hf=_read_qwen2,
    config_to_hf=_write_qwen2,
    config_from_gguf=gguf_reader("qwen2"),
    config_to_gguf=gguf_writer("qwen2"),
    hf_ignored=("rotary_emb.inv_freq",),
)

QWEN3 = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    model_types=("qwen3",),
    gguf_architecture="qwen3",
    hf_names=HF_NAMES | _NORMS_HF,
    gguf_names=GGUF_NAMES | _NORMS_GGUF,
    expresses=lambda c: (
        is_uniform(c) and c.qk_norm is QkNorm.HEAD and c.qkv_bias == c.o_bias and not c.mlp_bias
    ),
    config_from_hf=lambda values: read_hf(values, qk_norm=QkNorm.HEAD, mlp_bias=False),
    config_to_hf=_write_qwen3,
    config_from_gguf=gguf_reader("qwen3", qk_norm=QkNorm.HEAD),
    config_to_gguf=gguf_writer("qwen3"),
    hf_ignored=("rotary_emb.inv_freq",),
)
