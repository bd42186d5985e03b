"""Scales of blocks fitted to the codes that a method chose.

For: after rounding by anything but the scales themselves (GPTQ, coordinate descent): the codes
are held, and each block's own float16 numbers go where the outputs' error is least.
Not for: codes (`miudo.compress.quantize.descent`), or scales to begin with (`formats.blocks`).
Read next: `miudo.compress.quantize.gptq`, which takes both in turns.

Shapes: O outputs and I inputs of a matrix; the Hessian of its squared error is sum x x^T [I, I].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miudo.formats.block_codec import FloatArray
from miudo.formats.blocks import CODECS, to_f32
from miudo.formats.grid import grid_of
from miudo.tensors import StoredTensor

__all__ = ["refit"]

_Floats = npt.NDArray[np.float64]


def refit(weight: _Floats, stored: StoredTensor, hessian: _Floats) -> StoredTensor:
    """Returns `stored` with the blocks' own scales and offsets where the codes want them.

    The error trace((W - Q) H (W - Q)^T) is a parabola in each float16 number of a block while
    all else is held: each is moved to the vertex, block after block and within a block scale,
    offset and scale again, and only if what float16 makes of it errs less. Scales of scales stay.
    """
    blocks = stored.data.view(CODECS[stored.dtype].fields).copy()
    rows, columns = stored.shape
    width = stored.dtype.block
    values = to_f32(stored)
    offset = grid_of(stored).offset
    parts = {"d": values - offset, "m": offset}
    kinds = [name for name in ("d", "m", "d") if name in (blocks.dtype.names or ())]
    held = {name: blocks[name].reshape(rows, -1).astype(np.float64) for name in set(kinds)}
    pulled = (weight - values) @ hessian  # O I
    for b in range(columns // width):
        at, later = slice(b * width, (b + 1) * width), slice((b + 1) * width, columns)
        units = {name: _unit(parts[name][:, at], held[name][:, b]) for name in held}
        bent = {name: unit @ hessian[at, at] for name, unit in units.items()}
        part, shift = pulled[:, at], np.zeros((rows, width))
        for kind in kinds:
            unit = units[kind]
            slope = np.einsum("oi,oi->o", unit, part)
            bend = np.einsum("oi,oi->o", unit, bent[kind])
            best = held[kind][:, b] + np.divide(slope, bend, out=np.zeros(rows), where=bend > 0)
            moved = best.astype(np.float16).astype(np.float64) - held[kind][:, b]
            moved[~(2 * moved * slope > moved**2 * bend)] = 0.0
            held[kind][:, b] += moved
            part -= moved[:, None] * bent[kind]
            shift += moved[:, None] * unit
        pulled[:, later] -= shift @ hessian[at, later]
    for name, found in held.items():
        blocks[name] = found.reshape(-1).astype(np.float16)
    return StoredTensor(stored.dtype, stored.shape, blocks.view(np.uint8))


def _unit(part: FloatArray, held: _Floats) -> _Floats:
    """Returns what of a block [O, w] a number `held` [O] is multiplied with, 0 where it is 0."""
    per = np.broadcast_to(held[:, None], part.shape)
    unit: _Floats = np.divide(part, per, out=np.zeros(part.shape), where=per != 0)
    return unit
