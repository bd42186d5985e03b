"""Which values an encoded tensor can hold: its grids, and other codes on the same grids.

For: methods that choose codes themselves (GPTQ, learned rounding) and want a file's very bits.
Not for: finding the scales (`miudo.formats.blocks.encode` does, on values or on blocks of them).
Read next: `miudo.formats.block_codec`, where a type says what its codes mean.

Shapes: rows [..., I] as the tensor's, k levels. Block types only; Q8_0's code 0 is -128.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

import numpy as np

from miudo.errors import ConfigError
from miudo.formats.block_codec import ByteArray, Codec, FloatArray, reciprocal
from miudo.formats.blocks import CODECS
from miudo.tensors import DType, StoredTensor

__all__ = ["Grid", "codes_of", "grid_of", "with_codes"]


@dataclass(frozen=True, slots=True)
class Grid:
    """What each value may be: levels[code] * scale + offset, bit for bit as a reader has it.

    `levels` [k] are whole numbers; `scale`, `offset` and `inverse`, 1 / scale, have the tensor's
    shape. A scale may be negative or 0, its inverse is 0 then. `of` makes one; take columns with
    `grid[..., a:b]`.
    """

    levels: FloatArray
    scale: FloatArray
    offset: FloatArray
    inverse: FloatArray
    ordered: bool
    """Whether every level is the one before it and 1."""

    @classmethod
    def of(cls, levels: FloatArray, scale: FloatArray, offset: FloatArray) -> Grid:
        """Returns the grid of these numbers."""
        ordered = bool((np.diff(levels) == 1).all())
        return cls(levels, scale, offset, reciprocal(scale), ordered)

    def __getitem__(
        self, at: int | EllipsisType | slice | tuple[EllipsisType | slice, ...]
    ) -> Grid:
        """Returns the grid of a part of the tensor, as NumPy indexes it."""
        scale, offset, inverse = self.scale[at], self.offset[at], self.inverse[at]
        return Grid(self.levels, scale, offset, inverse, self.ordered)

    def transposed(self) -> Grid:
        """Returns the grid of the tensor with its columns as rows, each in one piece of memory."""
        scale, offset, inverse = (
            np.ascontiguousarray(part.T) for part in (self.scale, self.offset, self.inverse)
        )
        return Grid(self.levels, scale, offset, inverse, self.ordered)

    def nearest(self, values: FloatArray) -> ByteArray:
        """Returns the codes of the nearest values of the grid, of the grid's shape."""
        steps = (values - self.offset) * self.inverse
        found: ByteArray
        if self.ordered:
            steps = np.rint(steps, out=steps)
            steps -= self.levels[0]
            found = steps.clip(0, len(self.levels) - 1, out=steps).astype(np.uint8)
        else:
            order = np.argsort(self.levels, kind="stable")
            ordered = self.levels[order]
            places = np.searchsorted((ordered[1:] + ordered[:-1]) / 2, steps)
            found = order.astype(np.uint8)[places]
        return found

    def values(self, codes: ByteArray) -> FloatArray:
        """Returns what `codes`, of the grid's shape, stand for."""
        return self.levels[codes] * self.scale + self.offset


def grid_of(tensor: StoredTensor) -> Grid:
    """Returns the grid that the scales of `tensor` make. Raises ConfigError if it has none."""
    codec = _codec(tensor.dtype)
    scales, offsets = codec.grid(tensor.data.view(codec.fields))
    width = tensor.dtype.block // scales.shape[1]
    scale = np.repeat(scales, width, axis=1).reshape(tensor.shape)
    if offsets is None:
        return Grid.of(codec.levels, scale, np.zeros_like(scale))
    return Grid.of(codec.levels, scale, np.repeat(offsets, width, axis=1).reshape(tensor.shape))


def codes_of(tensor: StoredTensor) -> ByteArray:
    """Returns the code of each value of `tensor`, in its shape."""
    codec = _codec(tensor.dtype)
    return codec.codes(tensor.data.view(codec.fields)).reshape(tensor.shape)


def with_codes(tensor: StoredTensor, codes: ByteArray) -> StoredTensor:
    """Returns `tensor` with its scales and other codes, of its shape.

    Raises ConfigError for codes that have no level, or of another shape.
    """
    codec = _codec(tensor.dtype)
    if codes.shape != tensor.shape or int(codes.max(initial=0)) >= len(codec.levels):
        raise ConfigError(
            f"codes of shape {codes.shape} up to {codes.max(initial=0)}",
            remedy=f"{tensor.dtype} of {tensor.shape} takes codes below {len(codec.levels)}",
        )
    blocks = codes.astype(np.uint8, copy=False).reshape(-1, tensor.dtype.block)
    return StoredTensor(tensor.dtype, tensor.shape, codec.with_codes(tensor.data, blocks))


def _codec(dtype: DType) -> Codec:
    if dtype not in CODECS:
        raise ConfigError(f"{dtype} has no grid", remedy=f"Types of blocks are {', '.join(CODECS)}")
    return CODECS[dtype]
