"""Blocks of 32 values: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 both ways, MXFP4 to read.

For: rows of any multiple of 32.
Not for: blocks of 256 with scales of scales (`miudo.formats.blocks_k`).
Read next: `miudo.formats.blocks`.

A value is d * q or d * q + m, q a small whole number or the place of one in a table. Encoding
is, bit for bit, what llama.cpp's reference does: q by the block's greatest magnitude or its
range, ties away from zero or upwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

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
from miudo.formats.blocks_32_fit import fit_offset, fit_scale
from miudo.tensors import DType

__all__ = ["CODECS_32"]

# E2M1, doubled to be whole; 2^(e - 128) makes up for it.
_FP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.float32)


def _four_bits(b: Fields) -> ByteArray:
    return unpack(b["q"], 16, 4)


def _put_four(codes: ByteArray) -> Columns:
    return {"q": pack(codes, 16, 4)}


def _five_bits(b: Fields) -> ByteArray:
    fifth = np.unpackbits(b["h"], axis=1, bitorder="little")
    return unpack(b["q"], 16, 4) | fifth << np.uint8(4)


def _put_five(codes: ByteArray) -> Columns:
    fifth = np.packbits(codes >> np.uint8(4), axis=1, bitorder="little")
    return {"h": fifth, "q": pack(codes & np.uint8(15), 16, 4)}


def _eight_bits(b: Fields) -> ByteArray:
    return b["q"].view(np.uint8) ^ np.uint8(128)  # -128 is code 0


def _put_eight(codes: ByteArray) -> Columns:
    return {"q": (codes ^ np.uint8(128)).view(np.int8)}


def _scale(b: Fields) -> tuple[FloatArray, None]:
    return as_float(b["d"]), None


def _scale_offset(b: Fields) -> tuple[FloatArray, FloatArray]:
    return as_float(b["d"]), as_float(b["m"])


def _power(b: Fields) -> tuple[FloatArray, None]:
    exponent = b["e"].astype(np.uint32)
    # The two smallest scales, 2^-128 and 2^-127, are subnormal.
    small = np.uint32(0x00200000) << np.minimum(exponent, np.uint32(1))
    bits = np.where(exponent < 2, small, (np.maximum(exponent, 1) - np.uint32(1)) << np.uint32(23))
    return bits.astype(np.uint32).view(np.float32)[:, None], None


def _finite_mxfp4(b: Fields) -> bool:
    return bool((b["e"] <= 252).all())  # 12 times the next scale is no float32


def _steps(x: FloatArray, half: int) -> tuple[FloatArray, ByteArray]:
    """Returns scales [n, 1] and numbers: the value of greatest magnitude becomes -half."""
    at = np.abs(x).argmax(axis=1, keepdims=True)
    scale = np.take_along_axis(x, at, axis=1) / np.float32(-half)
    steps = x * reciprocal(scale) + np.float32(half + 0.5)
    return scale, np.clip(steps, 0, 2 * half - 1).astype(np.uint8)


def _steps_from_least(x: FloatArray, top: int) -> tuple[FloatArray, FloatArray, ByteArray]:
    """Returns scales and offsets [n, 1] and numbers from 0, the least value, to `top`."""
    least = x.min(axis=1, keepdims=True)
    scale = (x.max(axis=1, keepdims=True) - least) / np.float32(top)
    steps = (x - least) * reciprocal(scale) + np.float32(0.5)
    return scale, least, np.clip(steps, 0, top).astype(np.uint8)


def _fit_steps(
    x: FloatArray, importance: FloatArray | None, half: int
) -> tuple[Columns, ByteArray]:
    """The fit of Q4_0 and Q5_0: the greatest value is -half steps, or what a search finds."""
    d, codes = _steps(x, half)
    if importance is not None:
        d, q = fit_scale(x, importance, -half, half - 1, d)
        codes = (q + np.float32(half)).astype(np.uint8)
    return {"d": d[:, 0]}, codes


def _fit_steps_from_least(
    x: FloatArray, importance: FloatArray | None, top: int
) -> tuple[Columns, ByteArray]:
    """The fit of Q4_1 and Q5_1: from the least value to the greatest, or what a search finds."""
    d, m, codes = _steps_from_least(x, top)
    if importance is not None:
        d, m, q = fit_offset(x, importance, top, (d, m))
        codes = q.astype(np.uint8)
    return {"d": d[:, 0], "m": m[:, 0]}, codes


def _fit_8(x: FloatArray, importance: FloatArray | None) -> tuple[Columns, ByteArray]:
    # Without the sign bit floats are ordered as whole numbers are, which numpy compares faster.
    largest = (x.view(np.uint32) & np.uint32(0x7FFFFFFF)).max(axis=1, keepdims=True)
    scale = largest.view(np.float32) / np.float32(127)
    if importance is not None:
        scale, q = fit_scale(x, importance, -127, 127, scale)
        return {"d": scale[:, 0]}, q.astype(np.int8).view(np.uint8) ^ np.uint8(128)
    steps = x * reciprocal(scale)
    q = np.rint(steps)  # ties to even: those that go away from zero are put right
    steps -= q
    if (ties := np.abs(steps) == np.float32(0.5)).any():
        q[ties] += np.where(steps[ties] * x[ties] > 0, 2 * steps[ties], np.float32(0))
    return {"d": scale[:, 0]}, q.astype(np.int8).view(np.uint8) ^ np.uint8(128)


def _fields(*fields: tuple[str, str] | tuple[str, str, int]) -> np.dtype[np.void]:
    return np.dtype(list(fields))


_D, _M, _H, _Q = ("d", "<f2"), ("m", "<f2"), ("h", "u1", 4), ("q", "u1", 16)
_FOUR, _FIVE, _EIGHT = (_four_bits, _put_four), (_five_bits, _put_five), (_eight_bits, _put_eight)

CODECS_32: Mapping[DType, Codec] = {
    DType.Q4_0: Codec(
        _fields(_D, _Q), steps_from(-8, 16), *_FOUR, _scale, partial(_fit_steps, half=8)
    ),
    DType.Q4_1: Codec(
        _fields(_D, _M, _Q),
        steps_from(0, 16),
        *_FOUR,
        _scale_offset,
        partial(_fit_steps_from_least, top=15),
    ),
    DType.Q5_0: Codec(
        _fields(_D, _H, _Q), steps_from(-16, 32), *_FIVE, _scale, partial(_fit_steps, half=16)
    ),
    DType.Q5_1: Codec(
        _fields(_D, _M, _H, _Q),
        steps_from(0, 32),
        *_FIVE,
        _scale_offset,
        partial(_fit_steps_from_least, top=31),
    ),
    DType.Q8_0: Codec(_fields(_D, ("q", "i1", 32)), steps_from(-128, 256), *_EIGHT, _scale, _fit_8),
    DType.MXFP4: Codec(_fields(("e", "u1"), _Q), _FP4_VALUES, *_FOUR, _power, finite=_finite_mxfp4),
}
