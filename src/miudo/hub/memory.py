"""What a model of a known shape takes: parameters, bytes at each precision, keys and values.

For: the catalogue, which tells this of models that are not here, from their published numbers.
Not for: a model that is here: `miudo show` counts its tensors (`miudo.tensors`).
Read next: `miudo.hub.catalogue`, which holds the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PRECISIONS", "Shape", "Size", "Structure", "kv_cache_bytes", "size_of", "weights_bytes"]

PRECISIONS: Mapping[str, float] = {"F32": 32.0, "BF16": 16.0, "Q8_0": 8.5, "Q4_0": 4.5}
"""Bits a weight. Q8_0 and Q4_0 hold a float16 scale for each 32 values: half a bit a weight."""

_KV_BYTES = 2  # the engine rounds keys and values to float16 unless told otherwise


@dataclass(frozen=True, slots=True)
class Structure:
    """What all models of a family have in common and their weights show.

    `norms` are those of a block, each of `norm_vectors` vectors. `qk_norm` is None, "head" (one
    vector of a head's width each) or "full" (of all heads). `table_offset` rows come before a
    learned position table's first; None is no table.
    """

    gated: bool = True
    norms: int = 2
    norm_vectors: int = 1
    qk_norm: str | None = None
    qkv_bias: bool = False
    other_bias: bool = False
    table_offset: int | None = None
    embed_norm: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's published numbers. Heads and d_ff are one for all layers, or one a layer.

    `latent` are MiniCPM3's q_lora_rank, kv_lora_rank, nope, rope and value widths: queries and
    keys come out of narrow matrices (multi-head latent attention, DeepSeek-AI 2024).
    """

    vocab_size: int
    d_model: int
    n_heads: tuple[int, ...]
    n_kv_heads: tuple[int, ...]
    head_dim: int
    d_ff: tuple[int, ...]
    max_positions: int
    tied: bool
    latent: tuple[int, int, int, int, int] | None = None

    @property
    def n_layers(self) -> int:
        """How many blocks the model has."""
        return len(self.d_ff)


@dataclass(frozen=True, slots=True)
class Size:
    """How many values: in matrices, which may be stored in few bits, and in vectors, F32.

    `positions` is a learned position table, of which 16 bits are the least.
    """

    matrices: int
    vectors: int
    positions: int

    @property
    def parameters(self) -> int:
        """All values together; a tied head is the token table."""
        return self.matrices + self.vectors + self.positions


def size_of(shape: Shape, structure: Structure) -> Size:
    """Returns how many values a model of this shape has.

    A block holds attention (q, k, v and o, or the narrow ones of latent attention) and a
    feed-forward of two matrices, three where it is gated; the token table comes once more as
    head where that is not tied. Norms and biases are vectors.
    """
    d = shape.d_model
    matrices = vectors = 0
    for heads, kv_heads, d_ff in zip(shape.n_heads, shape.n_kv_heads, shape.d_ff, strict=True):
        q, kv = heads * shape.head_dim, kv_heads * shape.head_dim
        if shape.latent is None:
            matrices += d * (q + 2 * kv) + q * d
        else:
            q_rank, kv_rank, nope, rope, value = shape.latent
            matrices += d * q_rank + q_rank * heads * (nope + rope)
            matrices += d * (kv_rank + rope) + kv_rank * heads * (nope + value) + heads * value * d
            vectors += q_rank + kv_rank
        matrices += d * d_ff * (3 if structure.gated else 2)
        vectors += structure.norms * structure.norm_vectors * d
        vectors += {None: 0, "head": 2 * shape.head_dim, "full": q + kv}[structure.qk_norm]
        vectors += (q + 2 * kv) * structure.qkv_bias
        vectors += (2 * d + d_ff) * structure.other_bias
    matrices += shape.vocab_size * d * (1 if shape.tied else 2)
    vectors += structure.norm_vectors * d * (2 if structure.embed_norm else 1)
    offset = structure.table_offset
    positions = 0 if offset is None else (shape.max_positions + offset) * d
    return Size(matrices, vectors, positions)


def weights_bytes(size: Size, precision: str) -> int:
    """Returns the bytes of weights whose matrices are stored at `precision`, a key of PRECISIONS.

    Vectors stay at 32 bits, a position table at 16 or more, as `miudo.tensors` has it.
    """
    bits = PRECISIONS[precision]
    table = max(bits, 16.0)
    return int(size.matrices * bits + size.positions * table + size.vectors * 32) // 8


def kv_cache_bytes(shape: Shape, positions: int) -> int:
    """Returns the bytes of keys and values of one conversation of `positions` tokens.

    As the native engine keeps them as a rule: float16, every layer whole (a window saves time, not
    memory), latent attention expanded to ordinary keys and values.
    """
    if shape.latent is None:
        width = 2 * shape.head_dim * sum(shape.n_kv_heads)
    else:
        _, _, nope, rope, value = shape.latent
        width = (nope + rope + value) * sum(shape.n_heads)
    return _KV_BYTES * width * positions
