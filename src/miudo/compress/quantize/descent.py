"""Rounded columns gone over again: each to the value that is best while all others are as they are.

For: what GPTQ leaves, which fixes a column before it knows what becomes of the later ones.
Not for: scales (`miudo.compress.quantize.refit`).
Read next: `miudo.compress.quantize.gptq`.

Shapes: O outputs and I inputs of a matrix; the Hessian of its squared error is sum x x^T [I, I].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miudo.formats.block_codec import ByteArray
from miudo.formats.grid import Grid

__all__ = ["descend"]

_BLOCK = 32
"""Columns whose changes reach all later ones at once: changes speed, not the arithmetic."""


def descend(
    weight: npt.NDArray[np.float64],
    grid: Grid,
    codes: ByteArray,
    hessian: npt.NDArray[np.float64],
    *,
    held: npt.NDArray[np.bool_],
) -> tuple[ByteArray, int]:
    """Returns codes [O, I] after one pass over the columns, and how many changed.

    The error trace((W - Q) H (W - Q)^T) is a parabola in each column of Q: it goes to the grid's
    value nearest to the vertex, so that no pass makes the error greater (cyclic coordinate
    descent; Behdin et al. 2023, QuantEase). Where `held` is true, codes stay.
    """
    # Transposed, a column's numbers lie side by side.
    grid, found, free = grid.transposed(), codes.T.copy(), ~held.T
    values = grid.values(found)  # I O
    pulled = hessian @ (weight.T - values)  # I O
    columns, changed = len(found), 0
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        moved = np.zeros((end - start, found.shape[1]))
        for k, j in enumerate(range(start, end)):
            bend = hessian[j, j]
            if bend <= 0:
                continue
            column = grid[j]  # O
            chosen = column.nearest((values[j] + pulled[j] / bend).astype(np.float32))
            step = column.values(chosen) - values[j].astype(np.float64)
            # Rounding to float32 may pick the farther of two values that are as good as equal.
            better = (step * (2 * pulled[j] - step * bend) > 0) & free[j]
            if not better.any():
                continue
            step[~better] = 0.0
            changed += int(np.count_nonzero(better))
            np.copyto(found[j], chosen, where=better)
            moved[k] = step
            pulled[j + 1 : end] -= hessian[j + 1 : end, j, None] * step
        pulled[end:] -= hessian[end:, start:end] @ moved
    return found.T.copy(), changed
