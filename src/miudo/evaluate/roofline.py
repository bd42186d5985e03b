"""The bytes and operations that a step cannot do without, and the time they take at best.

For: holding a measured speed against what the machine can do (the roofline of Williams,
Waterman and Patterson 2009).
Not for: what an implementation moves besides; activations, norms and sampling count nothing.
Read next: `miudo.engine.probe`, which measures the machine; `miudo.evaluate.grid`.

Counted are: every matrix, once a step whatever the batch, in the type that the file has; the rows
of the token table that are looked up; keys and values, read for the positions that are seen and
written for those that are new; a product and its sum as two operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from miudo.config import LayerConfig, ModelConfig
from miudo.engine.native import CacheType
from miudo.engine.probe import Peaks
from miudo.tensors import DType, Role, Weights, tensor_table

__all__ = ["Numbers", "StepWork", "bounds", "step_work"]

_CACHED: Mapping[CacheType, DType] = {
    "f32": DType.F32, "f16": DType.F16, "bf16": DType.BF16, "int8": DType.Q8_0,
    "int4": DType.Q4_1,
}  # fmt: skip
"""Bytes of a key or value are those of a row of this type, its last group filled up."""

_FLOAT_TYPES = frozenset({DType.F32, DType.F16, DType.BF16})
"""Their products are floats; those of blocks are 8-bit integers where activations are."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """In what types a model runs: every tensor's, by name, and that of keys and values.

    With `int8` activations are rounded to 8 bits where weights are blocks; else all operations
    are floats. `sparse_bytes` are those of sparse tensors, whose shapes do not tell them; of
    these all products count, those with zeros too.
    """

    weights: Mapping[str, DType]
    int8: bool = True
    cache: CacheType = "f16"
    sparse_bytes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, weights: Weights, *, int8: bool, cache: CacheType) -> Self:
        """Returns the numbers of a model whose tensors are `weights`."""
        sparse = {n: t.size_bytes for n, t in weights.items() if t.dtype.sparse}
        return cls({n: tensor.dtype for n, tensor in weights.items()}, int8, cache, sparse)


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step needs at least: bytes by where they come from, operations by their kind."""

    weight_bytes: int
    cache_bytes: int
    int8_ops: int
    float_ops: int

    @property
    def bytes(self) -> int:
        """All bytes that are moved."""
        return self.weight_bytes + self.cache_bytes

    @property
    def ops(self) -> int:
        """All operations."""
        return self.int8_ops + self.float_ops


def step_work(
    config: ModelConfig, numbers: Numbers, sequences: Sequence[tuple[int, int]]
) -> StepWork:
    """Returns what a step over `sequences` needs: (positions held before, ids taken in) of each.

    The last id of each gives logits.
    """
    new = sum(taken for _, taken in sequences)
    weight_bytes = int8_ops = float_ops = 0
    for spec in tensor_table(config):
        dtype = numbers.weights[spec.name]
        head = spec.role is Role.HEAD or (spec.role is Role.EMBED and config.tie_embeddings)
        if spec.role in (Role.EMBED, Role.POSITION) and not head:
            weight_bytes += new * dtype.size_bytes(spec.shape[-1:])
            continue
        known = numbers.sparse_bytes.get(spec.name)
        weight_bytes += dtype.size_bytes(spec.shape) if known is None else known
        if len(spec.shape) < 2:
            continue
        ops = 2 * spec.shape[0] * spec.shape[1] * (len(sequences) if head else new)
        if numbers.int8 and dtype not in _FLOAT_TYPES:
            int8_ops += ops
        else:
            float_ops += ops
    cache_bytes = 0
    for layer in config.layers:
        row = sum(_cached_bytes(numbers.cache, n) for n in (layer.head_dim, layer.v_head_dim))
        for held, taken in sequences:
            cache_bytes += row * layer.n_kv_heads * (_first_seen(layer, held) + taken)
            seen = _seen(layer, held, taken)
            float_ops += 2 * (layer.head_dim + layer.v_head_dim) * layer.n_heads * seen
    return StepWork(weight_bytes, cache_bytes, int8_ops, float_ops)


def bounds(work: StepWork, peaks: Peaks) -> tuple[float, float]:
    """Returns the least seconds for moving the bytes, and for doing the operations.

    No step is faster than the larger of the two.
    """
    moving = work.bytes / peaks.read_bytes_per_s
    computing = work.int8_ops / peaks.int8_ops_per_s + work.float_ops / peaks.float_ops_per_s
    return moving, computing


def _cached_bytes(cache: CacheType, numbers: int) -> int:
    dtype = _CACHED[cache]
    return dtype.size_bytes((-(-numbers // dtype.block) * dtype.block,))


def _first_seen(layer: LayerConfig, held: int) -> int:
    """Positions of the cache that the step's first new id sees."""
    return held if layer.window is None else min(held, layer.window - 1)


def _seen(layer: LayerConfig, held: int, taken: int) -> int:
    """Pairs of a new id and a position that it sees, itself included."""
    if layer.window is None:
        return taken * held + taken * (taken + 1) // 2
    # The first `growing` ids see all before them, the rest a whole window.
    growing = min(taken, max(0, layer.window - held))
    return growing * held + growing * (growing + 1) // 2 + (taken - growing) * layer.window
