"""A matrix's second-order view: its inputs' Hessian, and columns fixed one by one.

For: SparseGPT and GPTQ, which fix a column (to zero, to a grid) and let the columns that are
not fixed yet make up for it; the error that a changed matrix makes on its inputs.
Not for: what a column is fixed to (`miudo.compress.prune.sparsegpt`, `miudo.compress.quantize`).
Read next: `miudo.compress.station`, which sums the inputs up.

Shapes: O outputs, I inputs of a matrix; the Hessian of its squared error is sum x x^T [I, I].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from miudo.errors import CheckFailedError

__all__ = ["DAMPING", "Fix", "Inverse", "compensate", "invert", "output_error"]

DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal, as GPTQ and SparseGPT have it."""
_MOST_DAMPING = 1e3
_COLUMNS = 256
"""Columns of an inverse found together: a square at once would be a layer's once more."""
_ROWS = 256
"""Rows whose errors are summed together: a token table in float64 is larger than a layer."""

Fix = Callable[[int, Tensor], Tensor]
"""Given a column's place j and the columns [O, from j to its block's end] as they are by now,
returns what column j becomes [O]. Must not change what it is given."""


@dataclass(frozen=True, slots=True)
class Inverse:
    """`factor` is the upper U [I, I] in float64 with (H + damping)^-1 = U^T U.

    `damping` is the share that it took, `asked` the one wanted; `dead` counts inputs that were
    zero throughout.
    """

    factor: Tensor
    damping: float
    asked: float
    dead: int

    @property
    def note(self) -> str | None:
        """What a report must say of it, None where all went as asked."""
        if self.damping == self.asked:
            return None
        return f"damping {self.asked:g} left the Hessian singular, {self.damping:g} was taken"


def invert(
    outer: Tensor, *, damping: float = DAMPING, where: str, order: Tensor | None = None
) -> Inverse:
    """Returns the inverse of sum x x^T, `outer` [I, I], factored; `where` names the matrix.

    The factor's rows and columns are the inputs in `order` [I], or as they are.
    Where it stays singular, damping is raised tenfold until it is not, and the result says so.
    Inputs that were always zero need no rule of their own: nothing couples them to others, so
    that their columns are fixed as if alone. Raises CheckFailedError for NaN, infinity, no
    inputs, or a matrix that no damping helps (it is not a sum of squares then).
    """
    hessian = outer.double()
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    places = torch.arange(len(hessian), device=hessian.device) if order is None else order
    if not math.isfinite(hessian.sum()) or not 0.0 < mean < math.inf:
        raise CheckFailedError(
            f"its inputs' squares have the mean {mean}, or hold NaN or infinity",
            where=where,
            remedy="Check that the model is trained and the text is its kind of text",
        )
    taken = damping
    while taken <= _MOST_DAMPING:
        factor = _inverse_factor(hessian, taken * mean, places)
        if factor is not None:
            return Inverse(factor, taken, damping, int((diagonal == 0).sum()))
        taken *= 10.0
    raise CheckFailedError(
        f"the Hessian has no Cholesky factor at a damping of {taken / 10.0:g}",
        where=where,
        remedy="Calibrate on more text",
    )


def compensate(weight: Tensor, factor: Tensor, fix: Fix, *, block: int = 128) -> Tensor:
    """Returns weight [O, I] with every column fixed, each column's error made up for by the next.

    Column by column: the error by U_jj goes to the columns right of it in proportion to row j of
    U (Frantar and Alistarh 2022, Optimal Brain Compression; the order and the blocks of columns
    are GPTQ's, 2023). `block` changes speed and what `fix` may look ahead to, not the arithmetic.
    Works in float64 and returns the weight's own type.
    """
    # Transposed, a column's numbers lie side by side.
    work = weight.detach().T.to(torch.float64, memory_format=torch.contiguous_format, copy=True)
    columns = len(work)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        part = work[start:end]  # b O
        upper = factor[start:end, start:end]
        errors = torch.empty_like(part)
        for k in range(end - start):
            column = fix(start + k, part[k:].T)  # O
            errors[k] = (part[k] - column) / upper[k, k]
            part[k + 1 :].addcmul_(upper[k, k + 1 :, None], errors[k], value=-1)
            part[k] = column
        work[end:] -= factor[start:end, end:].T @ errors
    return work.T.to(weight.dtype, memory_format=torch.contiguous_format)


def output_error(before: Tensor, after: Tensor, outer: Tensor) -> float:
    """Returns trace(D H D^T), D = before - after [O, I]: the squared error summed over tokens."""
    error = 0.0
    for old, new in zip(*(torch.split(w.detach(), _ROWS) for w in (before, after)), strict=True):
        change = old.double() - new.double()
        error += float(((change @ outer) * change).sum())
    return error


def _inverse_factor(hessian: Tensor, added: float, order: Tensor) -> Tensor | None:
    """The upper U with (H + `added`)^-1 = U^T U, None where that is not positive definite.

    Of the reversed H the Cholesky factor, reversed back, is an upper V with H = V V^T, so U is
    V^-1: one triangular solve, where inverting H first would square its condition.
    """
    last = order.flip(0)
    # Each square takes the place of the one before.
    work = hessian.index_select(0, last).index_select(1, last)
    work.diagonal().add_(added)
    work, failed = torch.linalg.cholesky_ex(work)
    if int(failed):
        return None
    work = work.flip(0, 1)
    factor = torch.zeros_like(work)
    for start in range(0, len(work), _COLUMNS):
        # Upper: what is below these columns' own rows is zero.
        end = min(start + _COLUMNS, len(work))
        one = work.new_zeros(end, end - start)
        one[start:].fill_diagonal_(1.0)
        factor[:end, start:end] = torch.linalg.solve_triangular(work[:end, :end], one, upper=True)
    return factor if math.isfinite(factor.sum()) else None
