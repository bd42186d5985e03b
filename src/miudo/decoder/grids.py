"""The values that a file's tensor can hold, in PyTorch, while its scales move.

For: training whose forward pass sees what a file will hold (`miudo.decoder.rounded`). Blocks,
their parts' whole steps and their bits are the file's own; a block's float16 scale and offset
change, and codes follow from the weights.
Not for: finding a file's scales (`miudo.formats.blocks`), or grids in NumPy (`miudo.formats.grid`).
Read next: `miudo.decoder.rounded`.

A value is level * scale + offset. A part's scale is its block's times a step of the part's, its
offset the block's times another; types without parts have steps of 1.

Shapes: n blocks, m parts of all blocks, k values of a part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from miudo.errors import ConfigError
from miudo.formats.block_codec import Codec
from miudo.formats.blocks import CODECS
from miudo.tensors import DType, StoredTensor

__all__ = ["TRAINABLE", "Grid", "Held", "check_trainable", "holds_zero"]

TRAINABLE = tuple(
    t for t, codec in CODECS.items() if codec.fit and "d" in (codec.fields.names or ())
)
"""Types of blocks that training can round to: those with a float16 scale."""

_GREATEST = 65504.0  # of float16


def check_trainable(name: str, dtype: DType) -> None:
    """Raises ConfigError for a type that training cannot round to."""
    if dtype not in TRAINABLE:
        raise ConfigError(
            f"{name} is {dtype}, which training cannot round to",
            remedy=f"Known are {', '.join(TRAINABLE)}",
        )


def holds_zero(dtype: DType) -> bool:
    """Whether 0 is a value of every block of this type, whatever its scales are."""
    codec = CODECS[dtype]
    return 0.0 in codec.levels and "m" not in (codec.fields.names or ())


@dataclass(frozen=True, slots=True)
class Held:
    """Scales as a file holds them: `d` and `m` float16 [n]; a reader's float32 [m, 1] of them."""

    d: Tensor
    m: Tensor | None
    scale: Tensor
    offset: Tensor | None


class Grid:
    """The grid of one encoded tensor.

    `d` [n] is the blocks' scale at the start, `m` [n] their offset, None in types without. A
    block has `parts` parts of `part` values. Levels go from `low` to `high`.
    """

    def __init__(self, stored: StoredTensor) -> None:
        codec = CODECS[stored.dtype]
        blocks = stored.data.view(codec.fields)
        offsets = "m" in (codec.fields.names or ())
        self._stored, self._codec = stored, codec
        self.d = torch.from_numpy(blocks["d"].astype("float32"))
        self.m = torch.from_numpy(blocks["m"].astype("float32")) if offsets else None
        # What a reader makes of scales and offsets of 1 are the steps of the parts.
        ones = blocks.copy()
        for name in ("d", "m") if offsets else ("d",):
            ones[name] = 1.0
        scale, offset = codec.grid(ones)
        self._up = torch.from_numpy(scale.copy())  # n parts
        self._down = None if offset is None else torch.from_numpy(offset.copy())  # n parts
        # Code 0 of Q8_0, -128, is what no writer of it gives.
        self._levels = torch.from_numpy(codec.levels[1 if stored.dtype is DType.Q8_0 else 0 :])
        self._halves = None if codec.uniform else _of_halves(self._levels)
        self.low, self.high = float(self._levels[0]), float(self._levels[-1])
        self.parts = self._up.shape[1]
        self.part = stored.dtype.block // self.parts

    def to(self, device: torch.device | str) -> None:
        """Moves all tensors to `device`."""
        for name in ("d", "m", "_up", "_down", "_levels", "_halves"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.to(device))

    def hold(self, scale: Tensor, offset: Tensor | None) -> Held:
        """Returns a block's `scale` and `offset` [n] rounded to what a file holds."""
        d = _half(scale)
        wide = (d.float()[:, None] * self._up).view(-1, 1)
        if offset is None or self._down is None:
            return Held(d, None, wide, None)
        m = _half(offset)
        return Held(d, m, wide, (m.float()[:, None] * self._down).view(-1, 1))

    def values(self, x: Tensor, held: Held) -> Tensor:
        """Returns x [m, k] rounded to nearest: what a reader makes of its codes, to the bit."""
        rounded = self._nearest(x, held).mul_(held.scale)
        return rounded if held.offset is None else rounded.add_(held.offset)

    def beyond(self, x: Tensor, held: Held) -> Tensor:
        """Returns whether x [m, k] lies outside the levels by more than rounding, bool."""
        at = _places(x, held)
        return (at < self.low - 0.5) | (at > self.high + 0.5)

    def by_block(self, parts: Tensor) -> Tensor:
        """Returns sums over each block [n] of what stands for each part [m]."""
        return parts.view(-1, self.parts).sum(1)

    def steps_down(self) -> Tensor | None:
        """Returns by how much a part's offset moves with its block's [m, 1], None without."""
        return None if self._down is None else self._down.view(-1, 1)

    def store(self, x: Tensor, held: Held) -> StoredTensor:
        """Returns the tensor of a file whose values are `values(x, held)`."""
        codec: Codec = self._codec
        levels = self._nearest(x, held)
        if codec.uniform:
            codes = levels - float(codec.levels[0])
        else:
            codes = torch.searchsorted(self._levels, levels)
        blocks = self._stored.data.view(codec.fields).copy()
        blocks["d"] = held.d.cpu().numpy()
        if held.m is not None:
            blocks["m"] = held.m.cpu().numpy()
        shape = (-1, self._stored.dtype.block)
        data = codec.with_codes(
            blocks.view("uint8"), codes.to(torch.uint8).view(shape).cpu().numpy()
        )
        return StoredTensor(self._stored.dtype, self._stored.shape, data)

    def _nearest(self, x: Tensor, held: Held) -> Tensor:
        """The level [m, k] nearest to each value, ties to even."""
        at = _places(x, held)
        if self._halves is None:
            return at.round_().clamp_(self.low, self.high)
        # Halfway between two whole levels lies a whole number of halves: a table of halves holds
        # them all, and is read faster than a search among levels is made.
        halves = at.mul_(2.0).floor_().clamp_(2 * self.low, 2 * self.high - 1)
        return self._halves[halves.sub_(2 * self.low).long()]


def _places(x: Tensor, held: Held) -> Tensor:
    """Where among the levels x [m, k] lies; 0 where the scale is 0."""
    inverse = 1.0 / held.scale
    inverse = torch.where(torch.isfinite(inverse), inverse, 0.0)
    return x * inverse if held.offset is None else (x - held.offset).mul_(inverse)


def _of_halves(levels: Tensor) -> Tensor:
    """The level nearest to each half step from the least level to the greatest."""
    halves = torch.arange(2 * float(levels[0]), 2 * float(levels[-1])) / 2 + 0.25
    return levels[torch.bucketize(halves, (levels[1:] + levels[:-1]) / 2)]


def _half(x: Tensor) -> Tensor:
    return x.clamp(-_GREATEST, _GREATEST).half()
