"""GPT-2 and its kin."""

from __future__ import annotations

from functools import partial
from typing import Any

from zoo.case import VOCAB, Case, of_class

__all__ = ["CASES"]

GPT2: dict[str, Any] = {
    "vocab_size": VOCAB, "n_embd": 64, "n_inner": 96, "n_layer": 3, "n_head": 4,
    "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def _gpt2(**values: Any) -> partial[Any]:
    return partial(of_class, "GPT2", GPT2 | values, head="LMHeadModel")


CASES: dict[str, Case] = {
    "gpt2": Case("gpt2", _gpt2(), llama_cpp="gpt2", logprob=2e-2),
    "gpt2-exact-gelu": Case("gpt2", _gpt2(activation_function="gelu")),
    "gpt2-untied": Case("gpt2", _gpt2(tie_word_embeddings=False), llama_cpp="gpt2", logprob=2e-2),
    "gpt2-four-times": Case(
        "gpt2", _gpt2(n_inner=None, layer_norm_epsilon=1e-3), llama_cpp="gpt2", logprob=2e-2
    ),
}
