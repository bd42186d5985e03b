"""OpenELM and DCLM: `transformers` has no classes for them, and its parts make them.

OpenELM is a Qwen3 whose layers differ in heads and widths; DCLM a Llama with layer norms and
OLMo 2's attention. The folders hold the names and the fused matrices of the authors' code.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.models.olmo2.configuration_olmo2 import Olmo2Config
from transformers.models.olmo2.modeling_olmo2 import Olmo2Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from zoo.case import TINY, Case, of_class

__all__ = ["CASES"]

# Heads, key-value heads and widths of each layer.
LAYERS = ((4, 2, 64), (6, 2, 96), (8, 4, 160))
HEAD_DIM = 16
Tensors = dict[str, torch.Tensor]


def _openelm(*, tied: bool = True) -> Any:
    values = TINY | {"head_dim": HEAD_DIM, "rms_norm_eps": 1e-6, "tie_word_embeddings": tied}
    model = of_class("Qwen3", values)
    for i, (heads, kv_heads, width) in enumerate(LAYERS):
        config = copy.deepcopy(model.config)
        config.num_attention_heads, config.num_key_value_heads = heads, kv_heads
        config.intermediate_size = width
        model.model.layers[i] = Qwen3DecoderLayer(config, i)
    return model


def _save_openelm(model: Any, folder: Path) -> None:
    held = model.state_dict()
    tensors = {
        "transformer.token_embeddings.weight": held["model.embed_tokens.weight"],
        "transformer.norm.weight": held["model.norm.weight"],
    }
    for i in range(len(LAYERS)):
        theirs, own = f"model.layers.{i}.", f"transformer.layers.{i}."
        tensors |= _moved(held, theirs, own, {
            "attn_norm": "input_layernorm", "attn.q_norm": "self_attn.q_norm",
            "attn.k_norm": "self_attn.k_norm", "attn.out_proj": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm", "ffn.proj_2": "mlp.down_proj",
        })  # fmt: skip
        tensors |= _fused(held, theirs, own, "attn.qkv_proj", "ffn.proj_1")
    values = {
        "architectures": ["OpenELMForCausalLM"], "model_type": "openelm",
        "auto_map": {"AutoModelForCausalLM": "modeling_openelm.OpenELMForCausalLM"},
        "model_dim": 64, "num_transformer_layers": len(LAYERS), "head_dim": HEAD_DIM,
        "num_query_heads": [heads for heads, _, _ in LAYERS],
        "num_kv_heads": [kv_heads for _, kv_heads, _ in LAYERS],
        # To two places, as the published ones, and rounded to multiples of 32.
        "ffn_multipliers": [1.03, 1.48, 2.51], "ffn_dim_divisor": 32, "ffn_with_glu": True,
        "activation_fn_name": "swish", "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": True, "num_gqa_groups": 4, "qkv_multipliers": [0.5, 1.0],
        "rope_freq_constant": 10000, "rope_max_length": 128, "max_context_length": 64,
        "share_input_output_layers": model.config.tie_word_embeddings, "vocab_size": 97,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if not model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = held["lm_head.weight"]
    _write(folder, tensors, values)


def _dclm() -> Any:
    # The width is that which the authors' code derives from 64.
    values = TINY | {"num_key_value_heads": 4, "intermediate_size": 256}
    model = of_class("Llama", values)
    attention = Olmo2Config(**values)
    attention._attn_implementation = "eager"
    for i, layer in enumerate(model.model.layers):
        layer.self_attn = Olmo2Attention(attention, i)
        for name in ("q_norm", "k_norm"):
            setattr(layer.self_attn, name, _norm())
        layer.input_layernorm, layer.post_attention_layernorm = _norm(), _norm()
    model.model.norm = _norm()
    return model


def _norm() -> nn.Module:
    return nn.LayerNorm(64, eps=1e-5, bias=False)


DCLM = {
    "dim": 64, "n_layers": 3, "n_heads": 4, "vocab_size": 97, "seq_len": 64, "norm_eps": 1e-5,
    "weight_tying": False, "apply_qk_norm": True, "post_embed_norm": False, "moe_freq": 0,
    "positional_embedding_type": "rotary", "moe_num_experts": 8, "moe_top_k": 2,
}  # fmt: skip


def _save_dclm(values: dict[str, Any]) -> Callable[[Any, Path], None]:
    def save(model: Any, folder: Path) -> None:
        held = model.state_dict()
        tensors = {
            "model.tok_embeddings.weight": held["model.embed_tokens.weight"],
            "model.norm.weight": held["model.norm.weight"],
            "model.output.weight": held["lm_head.weight"],
        }
        for i in range(3):
            theirs, own = f"model.layers.{i}.", f"model.layers.{i}."
            tensors |= _moved(held, theirs, own, {
                "attention_norm": "input_layernorm", "attention.q_norm": "self_attn.q_norm",
                "attention.k_norm": "self_attn.k_norm", "attention.out_proj": "self_attn.o_proj",
                "ffn_norm": "post_attention_layernorm", "feed_forward.w3": "mlp.down_proj",
            })  # fmt: skip
            tensors |= _fused(held, theirs, own, "attention.in_proj", "feed_forward.w12")
            tensors[own + "attention.pos_embed.inv_freq"] = torch.ones(8)
        named = {"model_type": "openlm", "bos_token_id": 1, "eos_token_id": 2}
        _write(folder, tensors, named | values)

    return save


def _moved(held: Tensors, theirs: str, own: str, names: dict[str, str]) -> Tensors:
    return {f"{own}{ours}.weight": held[f"{theirs}{name}.weight"] for ours, name in names.items()}


def _fused(held: Tensors, theirs: str, own: str, qkv: str, gate_up: str) -> Tensors:
    parts = {
        qkv: [held[f"{theirs}self_attn.{x}_proj.weight"] for x in "qkv"],
        gate_up: [held[f"{theirs}mlp.{x}_proj.weight"] for x in ("gate", "up")],
    }
    return {f"{own}{name}.weight": torch.cat(several) for name, several in parts.items()}


def _write(folder: Path, tensors: Tensors, values: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(values))
    save_file({k: v.clone() for k, v in tensors.items()}, folder / "model.safetensors")


NESTED = {
    "architectures": ["OpenLMModel"],
    "params": None,
    "params_args_dict": DCLM
    | {"model_norm": "gain_only_lp_layer_norm", "ffn_type": "swiglu_torch", "model": "open_lm_1b"},
}
FLAT = {
    "architectures": ["OpenLMForCausalLM"],
    **DCLM,
    "norm_type": "gain_only_lp_layer_norm",
    "ffn_type": "swiglu",
}

CASES: dict[str, Case] = {
    "openelm": Case("openelm", _openelm, _save_openelm, returns=False, llama_cpp="openelm"),
    "openelm-untied": Case("openelm", partial(_openelm, tied=False), _save_openelm, returns=False),
    "dclm": Case("dclm", _dclm, _save_dclm(NESTED), returns=False),
    "dclm-flat": Case("dclm", _dclm, _save_dclm(FLAT), returns=False),
}
