"""Blocks of 256 values of three levels, -d, 0 and d: TQ1_0 and TQ2_0, both ways.

For: models trained to such weights (BitNet b1.58, arXiv:2402.17764), which come back as they
were; of others little is left.
Not for: two bits a weight without training (Q2_K, `miudo.formats.blocks_k`).
Read next: `miudo.formats.blocks`.

TQ2_0 has 2 bits a value. TQ1_0 has five values a byte, digits of base 3: their number of 0 to
242 is stretched to 0 to 255, so that 3^i times the byte has the digit i above its eight bits.
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
    steps_from,
    unpack,
)
from miudo.formats.block_search import weigh
from miudo.tensors import DType

__all__ = ["CODECS_TERNARY"]

_LEVELS = steps_from(-1, 3)
_RUNS = ((0, 32, 5), (32, 16, 5), (48, 4, 4))
"""Runs of bytes whose first digits come first, then all second ones: start, bytes, digits."""
_POWERS = np.array([1, 3, 9, 27, 81], dtype=np.uint8)


def _digits(b: Fields) -> ByteArray:
    packed = np.concatenate([b["q"], b["h"]], axis=1)
    runs = []
    for start, width, digits in _RUNS:
        # The product loses what stands above the digit: bytes wrap around.
        left = packed[:, None, start : start + width] * _POWERS[:digits, None]
        runs.append((left.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(b), -1))
    return np.concatenate(runs, axis=1)


def _put_digits(codes: ByteArray) -> Columns:
    packed, at = [], 0
    for _, width, digits in _RUNS:
        run = codes[:, at : at + width * digits].reshape(len(codes), digits, width)
        number = (run.astype(np.uint16) * (81 // _POWERS[:digits, None])).sum(axis=1)
        packed.append(((number * 256 + 242) // 243).astype(np.uint8))
        at += width * digits
    return {"q": np.concatenate(packed[:2], axis=1), "h": packed[2]}


def _two_bits(b: Fields) -> ByteArray:
    return unpack(b["q"], 32, 2)


def _put_two(codes: ByteArray) -> Columns:
    return {"q": pack(codes, 32, 2)}


def _grid(b: Fields) -> tuple[FloatArray, None]:
    return as_float(b["d"]), None


def _fit(x: FloatArray, importance: FloatArray | None) -> tuple[Columns, ByteArray]:
    """Returns the scale of least error, of all there are, and the codes of x [n, 256].

    Whatever the scale, the values that are not 0 are the k largest: k is tried from 1 to 256,
    and of k the weighted mean of their sizes is the best scale.
    """
    size, weight = np.abs(x), weigh(x, importance).astype(np.float64)
    order = np.argsort(-size, axis=1, kind="stable")
    weights = np.take_along_axis(weight, order, axis=1)
    sums = np.cumsum(weights * np.take_along_axis(size, order, axis=1), axis=1)
    held = np.cumsum(weights, axis=1)
    gained = np.divide(sums * sums, held, out=np.zeros_like(sums), where=held > 0)
    best = gained.argmax(axis=1)[:, None]
    d = np.divide(
        np.take_along_axis(sums, best, axis=1),
        np.take_along_axis(held, best, axis=1),
        out=np.zeros((len(x), 1)),
        where=np.take_along_axis(held, best, axis=1) > 0,
    )
    half = d[:, 0].astype(np.float16)
    steps = np.rint(x * reciprocal(as_float(half))).clip(-1, 1)
    return {"d": half}, (steps + np.float32(1)).astype(np.uint8)


CODECS_TERNARY: Mapping[DType, Codec] = {
    DType.TQ1_0: Codec(
        np.dtype([("q", "u1", 48), ("h", "u1", 4), ("d", "<f2")]),
        _LEVELS, _digits, _put_digits, _grid, _fit,
    ),
    DType.TQ2_0: Codec(
        np.dtype([("q", "u1", 64), ("d", "<f2")]), _LEVELS, _two_bits, _put_two, _grid, _fit
    ),
}  # fmt: skip
