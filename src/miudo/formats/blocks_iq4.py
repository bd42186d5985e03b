"""Blocks of 4-bit numbers that are places in a table: IQ4_NL in 32 values, IQ4_XS in 256.

For: weights as trained models have them, many small and few large: the table is finer about 0.
Not for: pruned weights: no level is 0 (Q4_0 has one).
Read next: `miudo.formats.blocks`.

Table and layout are llama.cpp's; scales are searched as for blocks of 256.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from miudo.formats.block_codec import (
    ByteArray,
    Codec,
    Columns,
    Fields,
    FloatArray,
    as_float,
    pack,
    reciprocal,
    unpack,
)
from miudo.formats.block_search import Levels, Parts, fit_scale, weigh
from miudo.formats.blocks_k_fit import fit_parts
from miudo.tensors import DType

__all__ = ["CODECS_IQ4"]

_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)
_XS = Parts(8, Levels(_VALUES), -32, 31, offsets=False)


def _codes(b: Fields) -> ByteArray:
    return unpack(b["q"], 16, 4)


def _put(codes: ByteArray) -> Columns:
    return {"q": pack(codes, 16, 4)}


def _grid_nl(b: Fields) -> tuple[FloatArray, None]:
    return as_float(b["d"]), None


def _grid_xs(b: Fields) -> tuple[FloatArray, None]:
    low = unpack(b["s"], 1, 4)
    high = (b["h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)) & np.uint16(3)
    scales = (low + np.float32(16) * high).astype(np.float32) - np.float32(32)
    return as_float(b["d"]) * scales, None


def _fit_nl(x: FloatArray, importance: FloatArray | None) -> tuple[Columns, ByteArray]:
    levels = _XS.levels
    d = fit_scale(x, weigh(x, importance), levels).astype(np.float16)
    return {"d": d}, levels.codes(x * reciprocal(as_float(d)))


def _fit_xs(x: FloatArray, importance: FloatArray | None) -> tuple[Columns, ByteArray]:
    d, _, scales, _, codes = fit_parts(x, importance, _XS)
    six = (scales + np.float32(32)).astype(np.uint8)
    two = (six >> np.uint8(4)).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)
    high = np.bitwise_or.reduce(two, axis=1)
    return {"d": d, "h": high, "s": pack(six & np.uint8(15), 1, 4)}, codes


CODECS_IQ4: Mapping[DType, Codec] = {
    DType.IQ4_NL: Codec(
        np.dtype([("d", "<f2"), ("q", "u1", 16)]), _VALUES, _codes, _put, _grid_nl, _fit_nl
    ),
    DType.IQ4_XS: Codec(
        np.dtype([("d", "<f2"), ("h", "<u2"), ("s", "u1", 4), ("q", "u1", 128)]),
        _VALUES, _codes, _put, _grid_xs, _fit_xs,
    ),
}  # fmt: skip
