"""Gemma 2 and 3, at scores and logits great enough that the caps bite."""

from __future__ import annotations

from functools import partial
from typing import Any

from zoo.case import TINY, Case, of_class
from zoo.plain import older

__all__ = ["CASES", "LARGEST"]

GEMMA: dict[str, Any] = TINY | {
    "num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8,
}  # fmt: skip
CAPS = {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0}
# llama.cpp's GELU is a table of float16 values.
TABLE = {"logprob": 2e-2}


def _two(**values: Any) -> partial[Any]:
    return partial(of_class, "Gemma2", GEMMA | CAPS | values)


def _three(**values: Any) -> partial[Any]:
    return partial(of_class, "Gemma3", GEMMA | values)


HUB_TWO = older(
    gone=("layer_types", "rope_parameters", "tie_word_embeddings", "use_bidirectional_attention"),
    rope_theta=10000.0,
    hidden_act="gelu",
    cache_implementation="hybrid",
)
HUB_THREE = older(
    gone=("layer_types", "rope_parameters", "tie_word_embeddings"),
    rope_theta=1000000.0,
    rope_local_base_freq=10000.0,
    rope_scaling=None,
    sliding_window_pattern=6,
)

CASES: dict[str, Case] = {
    "gemma2": Case("gemma", _two(), save=HUB_TWO, llama_cpp="gemma2", **TABLE),
    "gemma2-other-scale": Case("gemma", _two(query_pre_attn_scalar=24)),
    "gemma3": Case("gemma", _three(), save=HUB_THREE, llama_cpp="gemma3", **TABLE),
    "gemma3-other-bases": Case(
        "gemma",
        _three(
            num_key_value_heads=1,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        ),
        llama_cpp="gemma3",
        **TABLE,
    ),
    "gemma3-other-layers": Case(
        "gemma",
        _three(
            num_hidden_layers=3,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
            attention_bias=True,
            final_logit_softcapping=10.0,
        ),
    ),
}

# As deep as the 27B, by which llama.cpp knows it: too deep a noise to compare logits in float32.
LARGEST = Case(
    "gemma", _two(num_hidden_layers=46, query_pre_attn_scalar=16), llama_cpp="gemma2", **TABLE
)
