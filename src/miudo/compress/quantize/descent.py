"""Rounded columns gone over again: each to the value that is best while all others are as they are.

For: what GPTQ leaves, which fixes a column before it knows what becomes of the later ones.
Not for: scales (`miudo.compress.quantize.gptq.refit`).
Read next: `miudo.compress.quantize.gptq`.

Shapes: O outputs and I inputs of a matrix; the Hessian of its squared error is sum x x^T [I, I].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miudo.formats.block_codec import ByteArray
from miudo.formats.grid import Grid

__all__ = ["descend"]

_BLOCK = 128
"""Columns whose changes reach all others at once: changes speed, not the arithmetic."""


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
    codes = codes.copy()
    values = grid.values(codes).astype(np.float64)  # O I
    pulled = (weight - values) @ hessian  # O I
    changed = 0
    for start in range(0, codes.shape[1], _BLOCK):
        at = slice(start, min(start + _BLOCK, codes.shape[1]))
        moved = np.zeros((len(codes), at.stop - start))
        part = pulled[:, at].copy()
        for k, j in enumerate(range(start, at.stop)):
            if hessian[j, j] <= 0:
                continue
            column = grid[:, j : j + 1]  # O 1
            vertex = values[:, j] + part[:, k] / hessian[j, j]
            chosen = column.nearest(vertex[:, None].astype(np.float32))[:, 0]
            chosen = np.where(held[:, j], codes[:, j], chosen)
            step = column.values(chosen[:, None])[:, 0] - values[:, j]
            # Rounding to float32 may pick the farther of two values that are as good as equal.
            step[step * (2 * part[:, k] - step * hessian[j, j]) <= 0] = 0.0
            better = step != 0.0
            changed += int(better.sum())
            codes[better, j] = chosen[better]
            moved[:, k] = step
            values[:, j] += step
            part -= step[:, None] * hessian[j, at]
        pulled -= moved @ hessian[at]
    return codes, changed
