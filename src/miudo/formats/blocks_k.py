"""Blocks of 256 values with scales of scales: Q2_K to Q6_K and IQ4_XS, read.

For: rows of multiples of 256; a block's parts of 16 or 32 values have small whole scales, which
the block's own float16 scales multiply.
Not for: finding scales when writing (`miudo.formats.blocks_k_fit`).
Read next: `miudo.formats.blocks`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from miudo.formats.block_codec import Codec, Fields, FloatArray, as_float, unpack
from miudo.formats.blocks_32 import IQ4_VALUES
from miudo.formats.blocks_k_fit import encode_q4_k, encode_q6_k
from miudo.tensors import DType

__all__ = ["CODECS_K"]

_Bytes = npt.NDArray[np.uint8]


def _scaled(q: npt.NDArray[np.generic], scales: FloatArray) -> FloatArray:
    """Returns q [n, 256] times scales [n, parts] of equal parts, [n, parts, 256 / parts]."""
    n, parts = scales.shape
    return q.astype(np.float32).reshape(n, parts, -1) * scales[:, :, None]


def _flat(parts: FloatArray) -> FloatArray:
    return parts.reshape(len(parts), -1)


def _six_bit_pairs(packed: _Bytes) -> tuple[FloatArray, FloatArray]:
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


def _decode_q2(b: Fields) -> FloatArray:
    scales = as_float(b["d"]) * (b["s"] & np.uint8(15))
    offsets = as_float(b["m"]) * (b["s"] >> np.uint8(4))
    return _flat(_scaled(unpack(b["q"], 32, 2), scales) - offsets[:, :, None])


def _decode_q3(b: Fields) -> FloatArray:
    low, high = unpack(b["s"][:, :8], 8, 4), unpack(b["s"][:, 8:], 4, 2)
    scales = as_float(b["d"]) * ((low | high << np.uint8(4)).astype(np.float32) - np.float32(32))
    q = unpack(b["q"], 32, 2) | unpack(b["h"], 32, 1) << np.uint8(2)
    return _flat(_scaled(q.astype(np.float32) - np.float32(4), scales))


def _decode_q4(b: Fields) -> FloatArray:
    scales, offsets = _six_bit_pairs(b["s"])
    steps = _scaled(unpack(b["q"], 32, 4), as_float(b["d"]) * scales)
    return _flat(steps - (as_float(b["m"]) * offsets)[:, :, None])


def _decode_q5(b: Fields) -> FloatArray:
    scales, offsets = _six_bit_pairs(b["s"])
    q = unpack(b["q"], 32, 4) | unpack(b["h"], 32, 1) << np.uint8(4)
    steps = _scaled(q, as_float(b["d"]) * scales)
    return _flat(steps - (as_float(b["m"]) * offsets)[:, :, None])


def _decode_q6(b: Fields) -> FloatArray:
    q = unpack(b["q"], 64, 4) | unpack(b["h"], 32, 2) << np.uint8(4)
    return _flat(_scaled(q.astype(np.float32) - np.float32(32), as_float(b["d"]) * b["s"]))


def _decode_iq4_xs(b: Fields) -> FloatArray:
    low = unpack(b["s"], 1, 4)
    high = (b["h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)) & np.uint16(3)
    scales = (low + np.float32(16) * high).astype(np.float32) - np.float32(32)
    return _flat(_scaled(IQ4_VALUES[unpack(b["q"], 16, 4)], as_float(b["d"]) * scales))


_D, _M = ("d", "<f2"), ("m", "<f2")
_PAIRS, _NIBBLES = ("s", "u1", 12), ("q", "u1", 128)

CODECS_K: Mapping[DType, Codec] = {
    DType.Q2_K: Codec(np.dtype([("s", "u1", 16), ("q", "u1", 64), _D, _M]), _decode_q2),
    DType.Q3_K: Codec(
        np.dtype([("h", "u1", 32), ("q", "u1", 64), ("s", "u1", 12), _D]), _decode_q3
    ),
    DType.Q4_K: Codec(np.dtype([_D, _M, _PAIRS, _NIBBLES]), _decode_q4, encode_q4_k),
    DType.Q5_K: Codec(np.dtype([_D, _M, _PAIRS, ("h", "u1", 32), _NIBBLES]), _decode_q5),
    DType.Q6_K: Codec(
        np.dtype([_NIBBLES, ("h", "u1", 64), ("s", "i1", 16), _D]), _decode_q6, encode_q6_k
    ),
    DType.IQ4_XS: Codec(np.dtype([_D, ("h", "<u2"), ("s", "u1", 4), _NIBBLES]), _decode_iq4_xs),
}
