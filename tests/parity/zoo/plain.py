"""GPT-2, BLOOM, OPT, GPT-NeoX and StableLM: norms with biases."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from zoo.case import TINY, VOCAB, Case, of_class

__all__ = ["CASES"]

IDS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT2: dict[str, Any] = {
    "vocab_size": VOCAB, "n_embd": 64, "n_inner": 96, "n_layer": 3, "n_head": 4,
    "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OPT: dict[str, Any] = IDS | {
    "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "activation_function": "gelu",
}  # fmt: skip
BARE = {"enable_bias": False, "layer_norm_elementwise_affine": False}
# llama.cpp's GELU is a table of float16 values, and the tanh form where NeoX means the exact.
TABLE = {"logprob": 2e-2}


def _gpt2(**values: Any) -> partial[Any]:
    return partial(of_class, "GPT2", GPT2 | values, head="LMHeadModel")


def _bloom(heads: int, **values: Any) -> partial[Any]:
    sizes = {"hidden_size": 16 * heads, "n_layer": 3, "n_head": heads, "seq_length": 64}
    return partial(of_class, "Bloom", IDS | sizes | values)


def _opt(**values: Any) -> partial[Any]:
    return partial(of_class, "OPT", OPT | values)


def _neox(share: float = 0.25, **values: Any) -> partial[Any]:
    rope = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": share}
    sizes = {k: v for k, v in TINY.items() if k != "num_key_value_heads"}
    return partial(of_class, "GPTNeoX", sizes | {"rope_parameters": rope} | values)


def _stablelm(**values: Any) -> partial[Any]:
    return partial(of_class, "StableLm", TINY | values)


def older(
    prefix: str = "", buffers: tuple[str, ...] = (), gone: tuple[str, ...] = (), **config: Any
) -> Callable[[Any, Path], None]:
    """Saves with `config` over config.json without keys `gone`, names without `prefix`."""

    def save(model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        file = folder / "config.json"
        values = {k: v for k, v in json.loads(file.read_text()).items() if k not in gone}
        file.write_text(json.dumps(values | config))
        held = load_file(folder / "model.safetensors")
        tensors = {name.removeprefix(prefix): tensor for name, tensor in held.items()}
        tensors |= {name: torch.ones(1, 1, 4, 4) for name in buffers}
        save_file(tensors, folder / "model.safetensors")

    return save


CEREBRAS = older(
    "transformer.", ("h.0.attn.bias", "h.1.attn.masked_bias"), architectures=["GPT2Model"]
)
HUB_BLOOM = older(
    "transformer.",
    gone=("hidden_size", "n_head", "tie_word_embeddings"),
    n_embed=96,
    num_attention_heads=6,
    offset_alibi=100,
    masked_softmax_fusion=True,
)
HUB_PYTHIA = older(
    "",
    ("gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"),
    ("rope_parameters", "dtype"),
    rotary_pct=0.25,
    rotary_emb_base=5000,
    torch_dtype="float16",
)
HUB_STABLELM = older(
    gone=("rope_parameters", "layer_norm_eps"),
    architectures=["StableLMEpochForCausalLM"],
    model_type="stablelm_epoch",
    rope_pct=0.25,
    rope_theta=10000,
    norm_eps=1e-5,
    rotary_scaling_factor=1.0,
)

CASES: dict[str, Case] = {
    "gpt2": Case("gpt2", _gpt2(), llama_cpp="gpt2", **TABLE),
    "gpt2-untied": Case("gpt2", _gpt2(tie_word_embeddings=False), llama_cpp="gpt2", **TABLE),
    "gpt2-four-times": Case(
        "gpt2", _gpt2(n_inner=None, layer_norm_epsilon=1e-3), llama_cpp="gpt2", **TABLE
    ),
    "cerebras": Case("gpt2", _gpt2(activation_function="gelu"), save=CEREBRAS),
    "bloom": Case("bloom", _bloom(4), llama_cpp="bloom", **TABLE),
    "bloom-6-heads": Case("bloom", _bloom(6), save=HUB_BLOOM, llama_cpp="bloom", **TABLE),
    "galactica": Case("opt", _opt()),
    "galactica-bare": Case("opt", _opt(**BARE)),
    "opt": Case("opt", _opt(activation_function="relu"), save=older("model.")),
    "opt-no-biases": Case("opt", _opt(enable_bias=False, tie_word_embeddings=False)),
    "pythia": Case("neox", _neox(), save=HUB_PYTHIA, llama_cpp="gptneox", **TABLE),
    "neox-in-turn": Case(
        "neox", _neox(1.0, use_parallel_residual=False), llama_cpp="gptneox", **TABLE
    ),
    "neox-no-biases": Case(
        "neox", _neox(0.5, attention_bias=False, hidden_act="gelu_new", tie_word_embeddings=True)
    ),
    "stablelm": Case(
        "stablelm",
        _stablelm(num_key_value_heads=4),
        save=HUB_STABLELM,
        llama_cpp="stablelm",
    ),
    "stablelm-2": Case(
        "stablelm",
        _stablelm(use_qkv_bias=True, use_parallel_residual=True),
        llama_cpp="stablelm",
    ),
    "stablelm-biases": Case(
        "stablelm", _stablelm(use_qkv_bias=True, hidden_act="gelu", tie_word_embeddings=True)
    ),
}
