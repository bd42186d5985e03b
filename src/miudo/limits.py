"""The largest sizes that miudo accepts from files and requests, in one frozen object.

For: refusing absurd values before anything is allocated.
Not for: what a model or a machine can do well.
Read next: `miudo.config`, `miudo.formats`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMITS", "Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds. Every parser takes one, so that a test can lower a bound."""

    vocab_size: int = 1 << 21
    d_model: int = 1 << 16
    d_ff: int = 1 << 19
    n_layers: int = 1024
    n_heads: int = 4096
    head_dim: int = 4096
    max_positions: int = 1 << 26
    adapter_rank: int = 4096
    tensors: int = 1 << 20
    tensor_dims: int = 4
    tensor_elements: int = 1 << 40
    name_bytes: int = 512
    header_bytes: int = 1 << 23
    config_bytes: int = 1 << 23
    json_bytes: int = 256 << 20
    json_depth: int = 64
    json_values: int = 1 << 18
    tokenizer_values: int = 1 << 22
    gguf_keys: int = 1 << 16
    gguf_array_items: int = 1 << 23
    gguf_string_bytes: int = 256 << 20
    zip_members: int = 1 << 14
    pickle_bytes: int = 1 << 22
    pickle_opcodes: int = 1 << 18
    pickle_stack: int = 1 << 16
    token_bytes: int = 1 << 16
    template_bytes: int = 1 << 17


LIMITS = Limits()
