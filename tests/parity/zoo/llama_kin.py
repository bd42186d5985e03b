"""Llama, Mistral, Qwen, Phi, Granite, MiniCPM, SmolLM3 and OLMo 2."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from zoo.case import TINY, Case, of_class

__all__ = ["CASES"]

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 500.0,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
    "rope_theta": 1e4,
}  # fmt: skip
WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
SCALES = {
    "embedding_multiplier": 12.0, "residual_multiplier": 1.4 / 3**0.5, "logits_scaling": 0.8,
    "attention_multiplier": 0.2, "tie_word_embeddings": True,
}  # fmt: skip
# 16 is the class's default of heads here, so that the lists have rotated / 2 = 8 or 6 numbers.
LENGTHS = (12, 16, 17, 33)


def longrope(n: int, original: int = 16) -> dict[str, Any]:
    return {
        "original_max_position_embeddings": original,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0 + 0.1 * i for i in range(n)],
            "long_factor": [1.0 + 0.7 * i for i in range(n)],
        },
    }


def share(values: dict[str, Any], part: float) -> dict[str, Any]:
    rope = values["rope_parameters"] | {"partial_rotary_factor": part}
    return values | {"rope_parameters": rope}


def minicpm(model: Any, folder: Path) -> None:
    """A Granite folder in MiniCPM's words: the classes differ in nothing else."""
    model.save_pretrained(folder)
    file = folder / "config.json"
    c = json.loads(file.read_text())
    old = {
        "architectures": ["MiniCPMForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"},
        "scale_emb": c.pop("embedding_multiplier"),
        "scale_depth": c.pop("residual_multiplier") * c["num_hidden_layers"] ** 0.5,
        "dim_model_base": c["hidden_size"] / c.pop("logits_scaling"),
    }
    for key in ("attention_multiplier", "model_type", "tie_word_embeddings", "rope_parameters"):
        del c[key]
    file.write_text(json.dumps(c | old))


def _llama(**values: Any) -> partial[Any]:
    return partial(of_class, "Llama", TINY | {"rms_norm_eps": 1e-5} | values)


def _kin(name: str, **values: Any) -> partial[Any]:
    return partial(of_class, name, TINY | values)


MINICPM3 = {
    "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8, "v_head_dim": 16, "scale_emb": 12, "scale_depth": 1.4,
    "dim_model_base": 256, "rms_norm_eps": 1e-6,
}  # fmt: skip

CASES: dict[str, Case] = {
    "llama": Case("llama", _llama(), llama_cpp="llama"),
    "llama-tied": Case("llama", _llama(tie_word_embeddings=True), llama_cpp="llama"),
    "llama-biases": Case("llama", _llama(attention_bias=True, mlp_bias=True), llama_cpp="llama"),
    "llama-head-dim": Case("llama", _llama(head_dim=32, eos_token_id=[2, 3]), llama_cpp="llama"),
    "llama-gelu": Case("llama", _llama(hidden_act="gelu_pytorch_tanh")),
    "llama-3.1": Case("llama", _llama(rope_parameters=LLAMA3), llama_cpp="llama"),
    "llama-linear": Case(
        "llama",
        _llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
        llama_cpp="llama",
    ),
    "llama-yarn": Case("llama", _llama(rope_parameters=YARN), llama_cpp="llama"),
    "mistral-window": Case("mistral", _kin("Mistral", sliding_window=8)),
    "mistral-nemo": Case(
        "mistral", _kin("Mistral", sliding_window=None, head_dim=32), llama_cpp="llama"
    ),
    "qwen2": Case("qwen", _kin("Qwen2"), llama_cpp="qwen2"),
    "qwen2-tied-yarn": Case(
        "qwen", _kin("Qwen2", tie_word_embeddings=True, rope_parameters=YARN), llama_cpp="qwen2"
    ),
    "qwen2-windows": Case("qwen", _kin("Qwen2", **WINDOWS)),
    "qwen3": Case("qwen", _kin("Qwen3", head_dim=32), llama_cpp="qwen3"),
    "qwen3-biases": Case("qwen", _kin("Qwen3", head_dim=16, attention_bias=True)),
    "qwen3-windows": Case("qwen", _kin("Qwen3", head_dim=16, **WINDOWS)),
    "phi-3.5": Case("phi", _kin("Phi3", **longrope(8)), lengths=LENGTHS, llama_cpp="phi3"),
    "phi-4-mini": Case(
        "phi",
        _kin("Phi3", **share(longrope(6), 0.75), tie_word_embeddings=True),
        lengths=LENGTHS,
        llama_cpp="phi3",
    ),
    "phi-3.5-short": Case(
        "phi", _kin("Phi3", **longrope(8, 512), max_position_embeddings=2048), llama_cpp="phi3"
    ),
    "phi-window": Case("phi", _kin("Phi3", **longrope(8), sliding_window=8), lengths=LENGTHS),
    "granite": Case("granite", _kin("Granite", **SCALES), llama_cpp="granite"),
    "granite-untied": Case(
        "granite",
        _kin("Granite", **SCALES | {"tie_word_embeddings": False, "attention_multiplier": 0.1}),
        llama_cpp="granite",
    ),
    "smollm3": Case("smollm3", _kin("SmolLM3", num_hidden_layers=5), llama_cpp="smollm3"),
    "smollm3-other-layers": Case(
        "smollm3", _kin("SmolLM3", no_rope_layers=[0, 1, 0], tie_word_embeddings=False)
    ),
    "olmo2": Case("olmo2", _kin("Olmo2"), llama_cpp="olmo2"),
    "minicpm": Case(
        "minicpm",
        _kin("Granite", **SCALES | {"attention_multiplier": 0.25}),
        save=minicpm,
        llama_cpp="minicpm",
    ),
    "minicpm3": Case(
        "minicpm",
        _kin("MiniCPM3", **MINICPM3, **longrope(4)),
        lengths=LENGTHS,
        llama_cpp="minicpm3",
    ),
    "minicpm3-whole-queries": Case(
        "minicpm",
        _kin("MiniCPM3", **MINICPM3 | {"q_lora_rank": None, "rms_norm_eps": 1e-5}),
    ),
}
