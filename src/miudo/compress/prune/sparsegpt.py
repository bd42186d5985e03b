"""SparseGPT: single weights go, and those to their right make up for them.

For: one matrix at a time, given the inverse Hessian of its inputs (Frantar and Alistarh 2023).
Not for: walking the model (`miudo.compress.prune.sparse`).
Read next: `miudo.compress.hessian`, whose solver this is a rule for.

Shapes: O outputs, I inputs of a matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miudo.compress.hessian import Fix, Inverse, compensate
from miudo.compress.prune.pattern import Pattern, lowest

__all__ = ["BLOCK", "sparsegpt"]

BLOCK = 128
"""Columns among which an unstructured mask is chosen at once, the paper's."""


def sparsegpt(
    weight: Tensor,
    inverse: Inverse,
    pattern: Pattern,
    *,
    block: int = BLOCK,
    rounding: Fix | None = None,
) -> Tensor:
    """Returns weight [O, I] with `pattern`'s zeros and its other values changed to suit.

    A weight's price is w^2 / U_jj^2, with what earlier columns have added to it. `rounding` says
    what becomes of a column's weights that stay, so that pruning and rounding make up for each
    other's errors in one pass; it sees columns as they are before the mask. What is zero
    already stays zero and counts.
    """
    if pattern.group is not None:
        block = max(block // pattern.group, 1) * pattern.group
    choice = _Choice(weight, inverse.factor.diagonal(), pattern, block)

    def fix(j: int, rest: Tensor) -> Tensor:
        column = rest[:, 0] if rounding is None else rounding(j, rest)
        return torch.where(choice.gone(j, rest), 0.0, column)

    return compensate(weight, inverse.factor, fix, block=block)


class _Choice:
    """The mask, chosen a block of columns (or M of them) at a time, on weights as they are then."""

    def __init__(self, weight: Tensor, diagonal: Tensor, pattern: Pattern, block: int) -> None:
        self.zero = weight.detach() == 0  # O I
        self.diagonal, self.pattern = diagonal, pattern
        self.step = pattern.group or block
        self.now = self.zero[:, :0]
        # A share counts the zeros that are there, and is spread over blocks by what is not.
        there, size = int(self.zero.sum()), self.zero.numel()
        self.live = torch.cat([torch.zeros(1), (~self.zero).sum(0).double().cumsum(0)]).tolist()
        more = max(round(pattern.share * size) - there, 0)
        self.share = more / max(size - there, 1)

    def gone(self, j: int, rest: Tensor) -> Tensor:
        """Which of column j's weights go [O]."""
        if j % self.step == 0:
            self.now = self._choose(j, rest[:, : self.step])
        return self.now[:, j % self.step]

    def _choose(self, start: int, columns: Tensor) -> Tensor:
        end = start + columns.shape[1]
        zero = self.zero[:, start:end]
        prices = (columns / self.diagonal[start:end]).square()
        prices = torch.where(zero, -1.0, prices)  # the first to be counted
        if self.pattern.group is not None:
            return self.pattern.mask(prices, by_row=True) | zero
        before, until = self.live[start], self.live[end]
        count = round(self.share * until) - round(self.share * before) + int(zero.sum())
        return lowest(prices.reshape(1, -1), count).reshape(columns.shape)
