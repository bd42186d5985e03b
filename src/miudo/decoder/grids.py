"""The values that block types of files can hold, in PyTorch: what scales become, and weights.

For: training whose forward pass sees what a file will hold (`miudo.decoder.rounded`).
Not for: bits (`miudo.formats.blocks`), which these numbers become without another search.
Read next: `miudo.decoder.rounded`.

A value is level * scale + offset, one scale (and offset) for the k values of a part. In blocks
of 256 a part's scale is a small whole number of steps of the block's own float16 scale.

Shapes: m parts of all blocks, k values of a part, n blocks, p parts of a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from miudo.formats.blocks import CODECS
from miudo.tensors import DType, StoredTensor

__all__ = ["GRIDS", "Grid", "Held", "Scales"]

_GREATEST = 65504.0  # of float16


@dataclass(frozen=True, slots=True)
class Scales:
    """One number a part, as float32 wishes: `scale` [m], and `offset` [m] or None."""

    scale: Tensor
    offset: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """Scales as a file holds them, and what its reader makes of them.

    `d` and `m` [n] are float16: a block's scale, and its offset or the step of its offsets.
    `scale_steps` and `offset_steps` [n, p] are the parts' whole numbers, None in blocks of one
    part. `scale` and `offset` [m, 1] are float32, to the bit what a reader multiplies and adds.
    """

    d: Tensor
    m: Tensor | None
    scale_steps: Tensor | None
    offset_steps: Tensor | None
    scale: Tensor
    offset: Tensor | None


@dataclass(frozen=True, slots=True)
class Grid:
    """One block type: `levels` ascend; `steps` are the bounds of a part's own whole scale.

    Offsets of types with `steps` are whole numbers from 0 on of a step that lowers. `zeroth` is
    the level of code 0.
    """

    levels: tuple[float, ...]
    part: int
    block: int
    offset: bool = False
    steps: tuple[int, int] | None = None
    zeroth: float = 0.0

    @property
    def low(self) -> float:
        """The least level."""
        return self.levels[0]

    @property
    def high(self) -> float:
        """The greatest level."""
        return self.levels[-1]

    @property
    def uniform(self) -> bool:
        """Whether levels are whole numbers in a row."""
        return len(self.levels) == self.high - self.low + 1

    def scales(self, stored: StoredTensor) -> Scales:
        """Returns the scales of a tensor that is of this type already."""
        codec = CODECS[stored.dtype]
        scale, offset = (
            None if found is None else torch.from_numpy(found.reshape(-1))
            for found in codec.grid(stored.data.view(codec.fields))
        )
        assert scale is not None  # noqa: S101 - every grid has one
        return Scales(scale, offset)

    def hold(self, wish: Scales) -> Held:
        """Returns `wish` [m] rounded to what a file holds."""
        if self.steps is None:
            d = _half(wish.scale)
            m = None if wish.offset is None else _half(wish.offset)
            offset = None if m is None else m.float()[:, None]
            return Held(d, m, None, None, d.float()[:, None], offset)
        parts = self.block // self.part
        d, steps = _in_steps(wish.scale.view(-1, parts), self.steps)
        scale = (d.float()[:, None] * steps).view(-1, 1)
        if wish.offset is None:
            return Held(d, None, steps, None, scale, None)
        m, lower = _in_steps(-wish.offset.view(-1, parts), self.steps)
        return Held(d, m, steps, lower, scale, -(m.float()[:, None] * lower).view(-1, 1))

    def nearest(self, x: Tensor, held: Held) -> Tensor:
        """Returns the level [m, k] nearest to each value of x [m, k], ties to even."""
        raised = x if held.offset is None else x - held.offset
        return self._snapped(raised * _inverse(held.scale))

    def values(self, x: Tensor, held: Held) -> Tensor:
        """Returns x [m, k] rounded: what a reader makes of its codes, to the bit."""
        rounded = self.nearest(x, held).mul_(held.scale)
        return rounded if held.offset is None else rounded.add_(held.offset)

    def codes(self, x: Tensor, held: Held) -> Tensor:
        """Returns the codes [m, k] uint8 of what each value is rounded to."""
        levels = self.nearest(x, held)
        if self.uniform:
            return (levels - self.zeroth).to(torch.uint8)
        return torch.searchsorted(self._table(levels), levels).to(torch.uint8)

    def beyond(self, x: Tensor, held: Held) -> Tensor:
        """Returns whether x [m, k] lies outside the levels by more than rounding, bool."""
        raised = x if held.offset is None else x - held.offset
        at = raised * _inverse(held.scale)
        return (at < self.low - 0.5) | (at > self.high + 0.5)

    def _snapped(self, at: Tensor) -> Tensor:
        """The level nearest to each value, in its own memory."""
        if self.uniform:
            return at.round_().clamp_(self.low, self.high)
        # Halfway between two whole levels lies a whole number of halves: a table of halves holds
        # them all, and is read faster than a search among levels is made.
        halves = at.mul_(2.0).floor_().clamp_(2 * self.low, 2 * self.high - 1)
        return self._of_halves(at)[(halves - 2 * self.low).long()]

    def _of_halves(self, like: Tensor) -> Tensor:
        """The level nearest to each half step from the least level to the greatest."""
        table = self._table(like)
        halves = torch.arange(2 * self.low, 2 * self.high, device=like.device) / 2 + 0.25
        return table[torch.bucketize(halves, (table[1:] + table[:-1]) / 2)]

    def _table(self, like: Tensor) -> Tensor:
        return torch.tensor(self.levels, device=like.device)


def _inverse(x: Tensor) -> Tensor:
    inverse = 1.0 / x
    return torch.where(torch.isfinite(inverse), inverse, 0.0)


def _half(x: Tensor) -> Tensor:
    return x.clamp(-_GREATEST, _GREATEST).half()


def _in_steps(parts: Tensor, bounds: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns float16 steps [n] and whole numbers [n, p] in `bounds`: products near `parts`."""
    low, high = bounds
    if low < 0:
        at = parts.abs().argmax(1, keepdim=True)
        step = parts.gather(1, at)[:, 0] / low
    else:
        step = parts.amax(1).clamp(min=0.0) / high
    d = _half(step)
    return d, (parts * _inverse(d.float())[:, None]).round_().clamp_(low, high)


def _grid(
    dtype: DType, part: int, *, least: float | None = None, offset: bool = False,
    steps: tuple[int, int] | None = None,
) -> Grid:
    levels = [float(level) for level in CODECS[dtype].levels]
    used = tuple(level for level in levels if least is None or level >= least)
    return Grid(used, part, dtype.block, offset, steps, levels[0])


GRIDS: Mapping[DType, Grid] = {
    DType.Q4_0: _grid(DType.Q4_0, 32),
    DType.Q5_0: _grid(DType.Q5_0, 32),
    DType.Q8_0: _grid(DType.Q8_0, 32, least=-127),  # as every writer of it
    DType.Q4_1: _grid(DType.Q4_1, 32, offset=True),
    DType.Q5_1: _grid(DType.Q5_1, 32, offset=True),
    DType.IQ4_NL: _grid(DType.IQ4_NL, 32),
    DType.Q2_K: _grid(DType.Q2_K, 16, offset=True, steps=(0, 15)),
    DType.Q3_K: _grid(DType.Q3_K, 16, steps=(-32, 31)),
    DType.Q4_K: _grid(DType.Q4_K, 32, offset=True, steps=(0, 63)),
    DType.Q5_K: _grid(DType.Q5_K, 32, offset=True, steps=(0, 63)),
    DType.Q6_K: _grid(DType.Q6_K, 16, steps=(-128, 127)),
}
"""Block types whose values training can round to."""
