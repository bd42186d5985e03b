"""What every block type is made of: fields of bytes, and numbers of a few bits packed in them.

For: the tables of `miudo.formats.blocks_32`, `blocks_k` and `blocks_ternary`.
Not for: whole tensors (`miudo.formats.blocks`).
Read next: `miudo.formats.blocks_32`, whose blocks are the simplest.

Shapes: n blocks, parts of a block that share a scale, k levels. Within a block the packed
numbers lie in planes: a run of `width` bytes holds the first `width` numbers in its lowest bits,
the next `width` in the bits above, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "ByteArray",
    "Codec",
    "Columns",
    "Fields",
    "FloatArray",
    "as_float",
    "pack",
    "reciprocal",
    "steps_from",
    "unpack",
]

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
Fields = npt.NDArray[Any]
"""Blocks [n] of a structured type."""
Columns = dict[str, npt.NDArray[Any]]
"""Some fields of blocks by name, each [n, ...]."""


def _finite_scales(blocks: Fields) -> bool:
    names = blocks.dtype.names or ()
    return all(np.isfinite(blocks[n]).all() for n in names if blocks.dtype[n].kind == "f")


@dataclass(frozen=True, slots=True)
class Codec:
    """The fields of a block in order, and what they mean: levels[code] * scale + offset.

    `codes` reads a block's small numbers [n, block], `put` makes fields of them. `grid` reads
    the scales and offsets [n, parts] of equal parts; offsets None: there are none. `fit` finds
    the scales' fields and the codes [n, block] for values [n, block], each of which weighs as
    much as its importance [n, block], or as the type's own rule says if that is None; it is None
    for types that are only read. `finite` says whether all values are finite, by the blocks'
    scales: levels are finite whatever the bits are.
    """

    fields: np.dtype[np.void]
    levels: FloatArray
    codes: Callable[[Fields], ByteArray]
    put: Callable[[ByteArray], Columns]
    grid: Callable[[Fields], tuple[FloatArray, FloatArray | None]]
    fit: Callable[[FloatArray, FloatArray | None], tuple[Columns, ByteArray]] | None = None
    finite: Callable[[Fields], bool] = _finite_scales

    @property
    def uniform(self) -> bool:
        """Whether levels are steps of one, so that arithmetic does for a table."""
        return bool((np.diff(self.levels) == 1).all())

    def to_values(self, data: ByteArray) -> FloatArray:
        """Returns the values [n, block] of whole blocks."""
        blocks = data.view(self.fields)
        codes = self.codes(blocks)
        scales, offsets = self.grid(blocks)
        # Spare codes lie past the levels of a uniform type, and mean what arithmetic says.
        steps = codes + self.levels[0] if self.uniform else self.levels[codes]
        values = steps.reshape(*scales.shape, -1)
        values *= scales[:, :, None]
        if offsets is not None:
            values += offsets[:, :, None]
        return values.reshape(codes.shape)

    def to_bytes(self, values: FloatArray, importance: FloatArray | None = None) -> ByteArray:
        """Returns the bytes of `values` [n, block], n blocks after another."""
        if self.fit is None:
            raise TypeError(f"blocks of {self.fields.names} are only read")
        blocks = np.empty(len(values), dtype=self.fields)
        scales, codes = self.fit(values, importance)
        for name, column in (scales | self.put(codes)).items():
            blocks[name] = column
        return blocks.view(np.uint8)

    def with_codes(self, data: ByteArray, codes: ByteArray) -> ByteArray:
        """Returns whole blocks with the scales of `data` and other codes [n, block]."""
        blocks = data.view(self.fields).copy()
        for name, column in self.put(codes).items():
            blocks[name] = column
        return blocks.view(np.uint8)


def as_float(column: npt.NDArray[Any]) -> FloatArray:
    """Returns one number a block as float32 [n, 1]."""
    return column.astype(np.float32)[:, None]


def steps_from(first: int, count: int) -> FloatArray:
    """Returns the levels [count] of codes that stand for whole numbers from `first` on."""
    return np.arange(first, first + count, dtype=np.float32)


def unpack(packed: ByteArray, width: int, bits: int) -> ByteArray:
    """Returns the numbers [n, m * 8 / bits] in bytes [n, m], whose planes are `width` wide."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    planes = packed.reshape(len(packed), -1, 1, width) >> shifts
    return (planes & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)


def pack(numbers: ByteArray, width: int, bits: int) -> ByteArray:
    """Returns the bytes that `unpack` turns into `numbers` [n, k], each below 2^bits."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    planes = numbers.reshape(len(numbers), -1, 8 // bits, width) << shifts
    packed: ByteArray = np.bitwise_or.reduce(planes, axis=2)
    return packed.reshape(len(numbers), -1)


def reciprocal(scale: FloatArray) -> FloatArray:
    """Returns 1 / scale, 0 where that is no number: such a scale is 0 in float16 too."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isfinite(inverse), inverse, np.float32(0))
