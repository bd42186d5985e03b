"""Blocks of 256 values with scales of scales: Q2_K to Q6_K, read.

For: rows of multiples of 256; a block's parts of 16 or 32 values have small whole scales, which
the block's own float16 scales multiply.
Not for: finding scales when writing (`miudo.formats.blocks_k_fit`).
Read next: `miudo.formats.blocks`.
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
    steps_from,
    unpack,
)
from miudo.formats.blocks_k_fit import fit_q2_k, fit_q3_k, fit_q4_k, fit_q5_k, fit_q6_k
from miudo.tensors import DType

__all__ = ["CODECS_K"]


def _six_bit_pairs(packed: ByteArray) -> tuple[FloatArray, FloatArray]:
    """Returns the eight scales and eight offsets [n, 8] in the 12 bytes of Q4_K and Q5_K.

    Bytes 0 to 3 hold the first four scales, 4 to 7 the first four offsets, 8 to 11 the low four
    bits of the others, whose high two bits lie above the first ones.
    """
    scales, offsets, low = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    high = np.uint8(0x30)
    last_scales = (low & np.uint8(15)) | (scales >> np.uint8(2) & high)
    last_offsets = (low >> np.uint8(4)) | (offsets >> np.uint8(2) & high)
    first = np.uint8(63)
    pairs = (
        np.concatenate([scales & first, last_scales], axis=1),
        np.concatenate([offsets & first, last_offsets], axis=1),
    )
    return pairs[0].astype(np.float32), pairs[1].astype(np.float32)


def _two_bits(b: Fields) -> ByteArray:
    return unpack(b["q"], 32, 2)


def _put_two(codes: ByteArray) -> Columns:
    return {"q": pack(codes, 32, 2)}


def _three_bits(b: Fields) -> ByteArray:
    return unpack(b["q"], 32, 2) | unpack(b["h"], 32, 1) << np.uint8(2)


def _put_three(codes: ByteArray) -> Columns:
    return {"q": pack(codes & np.uint8(3), 32, 2), "h": pack(codes >> np.uint8(2), 32, 1)}


def _four_bits(b: Fields) -> ByteArray:
    return unpack(b["q"], 32, 4)


def _put_four(codes: ByteArray) -> Columns:
    return {"q": pack(codes, 32, 4)}


def _five_bits(b: Fields) -> ByteArray:
    return unpack(b["q"], 32, 4) | unpack(b["h"], 32, 1) << np.uint8(4)


def _put_five(codes: ByteArray) -> Columns:
    return {"q": pack(codes & np.uint8(15), 32, 4), "h": pack(codes >> np.uint8(4), 32, 1)}


def _six_bits(b: Fields) -> ByteArray:
    return unpack(b["q"], 64, 4) | unpack(b["h"], 32, 2) << np.uint8(4)


def _put_six(codes: ByteArray) -> Columns:
    return {"q": pack(codes & np.uint8(15), 64, 4), "h": pack(codes >> np.uint8(4), 32, 2)}


def _grid_q2(b: Fields) -> tuple[FloatArray, FloatArray]:
    scales, offsets = b["s"] & np.uint8(15), b["s"] >> np.uint8(4)
    return as_float(b["d"]) * scales, -(as_float(b["m"]) * offsets)


def _grid_q3(b: Fields) -> tuple[FloatArray, None]:
    low, high = unpack(b["s"][:, :8], 8, 4), unpack(b["s"][:, 8:], 4, 2)
    steps = (low | high << np.uint8(4)).astype(np.float32) - np.float32(32)
    return as_float(b["d"]) * steps, None


def _grid_pairs(b: Fields) -> tuple[FloatArray, FloatArray]:
    scales, offsets = _six_bit_pairs(b["s"])
    return as_float(b["d"]) * scales, -(as_float(b["m"]) * offsets)


def _grid_q6(b: Fields) -> tuple[FloatArray, None]:
    return as_float(b["d"]) * b["s"], None


_D, _M = ("d", "<f2"), ("m", "<f2")
_PAIRS, _NIBBLES = ("s", "u1", 12), ("q", "u1", 128)
_TWO, _THREE = (_two_bits, _put_two), (_three_bits, _put_three)
_FOUR, _FIVE, _SIX = (_four_bits, _put_four), (_five_bits, _put_five), (_six_bits, _put_six)

CODECS_K: Mapping[DType, Codec] = {
    DType.Q2_K: Codec(
        np.dtype([("s", "u1", 16), ("q", "u1", 64), _D, _M]), steps_from(0, 4), *_TWO, _grid_q2,
        fit_q2_k,
    ),
    DType.Q3_K: Codec(
        np.dtype([("h", "u1", 32), ("q", "u1", 64), ("s", "u1", 12), _D]),
        steps_from(-4, 8), *_THREE, _grid_q3, fit_q3_k,
    ),
    DType.Q4_K: Codec(
        np.dtype([_D, _M, _PAIRS, _NIBBLES]), steps_from(0, 16), *_FOUR, _grid_pairs, fit_q4_k
    ),
    DType.Q5_K: Codec(
        np.dtype([_D, _M, _PAIRS, ("h", "u1", 32), _NIBBLES]),
        steps_from(0, 32), *_FIVE, _grid_pairs, fit_q5_k,
    ),
    DType.Q6_K: Codec(
        np.dtype([_NIBBLES, ("h", "u1", 64), ("s", "i1", 16), _D]),
        steps_from(-32, 64), *_SIX, _grid_q6, fit_q6_k,
    ),
}  # fmt: skip
