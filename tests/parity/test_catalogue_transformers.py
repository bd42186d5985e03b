"""The catalogue's arithmetic against `transformers`: as many parameters at every published width.

OpenELM and DCLM have no class there; their totals are held against published ones elsewhere.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from miudo.hub.catalogue import STRUCTURES, Entry, load_catalogue
from miudo.hub.memory import Shape, size_of

pytestmark = pytest.mark.parity

# Two layers show what all have; building thirty takes seconds.
LAYERS = 2
ENTRIES = [e for e in load_catalogue().entries if e.family not in ("openelm", "dclm")]
# model_type by family, where it is another word; MiniCPM 1 and 2 are Granite with other scalars.
TYPES = {"neox": "gpt_neox", "phi": "phi3", "gemma3": "gemma3_text", "minicpm": "granite"}


def llama_like(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.d_model,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": shape.n_heads[0],
        "num_key_value_heads": shape.n_kv_heads[0],
        "head_dim": shape.head_dim,
        "intermediate_size": shape.d_ff[0],
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_positions,
        "tie_word_embeddings": shape.tied,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def values(family: str, shape: Shape) -> dict[str, Any]:
    if family == "gpt2":
        return {
            "n_embd": shape.d_model,
            "n_layer": LAYERS,
            "n_head": shape.n_heads[0],
            "n_inner": shape.d_ff[0],
            "n_positions": shape.max_positions,
            "vocab_size": shape.vocab_size,
        }
    if family == "bloom":
        return {
            "hidden_size": shape.d_model,
            "n_layer": LAYERS,
            "n_head": shape.n_heads[0],
            "vocab_size": shape.vocab_size,
        }
    if family == "opt":
        more = {"ffn_dim": shape.d_ff[0], "word_embed_proj_dim": shape.d_model}
        return llama_like(shape) | more
    if shape.latent is not None:
        names = (
            "q_lora_rank",
            "kv_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
        )
        return llama_like(shape) | dict(zip(names, shape.latent, strict=True))
    return llama_like(shape)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.reference)
def test_parameters_are_those_of_the_class(entry: Entry) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = dataclasses.replace(
        entry.shape,
        n_heads=entry.shape.n_heads[:LAYERS],
        n_kv_heads=entry.shape.n_kv_heads[:LAYERS],
        d_ff=entry.shape.d_ff[:LAYERS],
    )
    kind = TYPES.get(entry.family, entry.family)
    config = AutoConfig.for_model(kind, **values(entry.family, shape))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert size_of(shape, STRUCTURES[entry.family]).parameters == counted
