"""Writing blocks of 256 values: which scales they get, and how those lie.

For: Q2_K, Q3_K, Q4_K, Q5_K and Q6_K.
Not for: reading them (`miudo.formats.blocks_k`), or the search (`miudo.formats.block_search`).
Read next: `miudo.formats.blocks_k`.

Shapes: n blocks.
"""

from __future__ import annotations

import numpy as np

from miudo.formats.block_codec import (
    ByteArray,
    Columns,
    FloatArray,
    pack,
    reciprocal,
    steps_from,
)
from miudo.formats.block_search import Levels, Parts, search_blocks, weigh

__all__ = ["fit_parts", "fit_q2_k", "fit_q3_k", "fit_q4_k", "fit_q5_k", "fit_q6_k"]

_Q2 = Parts(16, Levels(steps_from(0, 4)), 0, 15, offsets=True)
_Q3 = Parts(16, Levels(steps_from(-4, 8)), -32, 31, offsets=False)
_Q4 = Parts(8, Levels(steps_from(0, 16)), 0, 63, offsets=True)
_Q5 = Parts(8, Levels(steps_from(0, 32)), 0, 63, offsets=True)
_Q6 = Parts(16, Levels(steps_from(-32, 64)), -128, 127, offsets=False)


def fit_q2_k(x: FloatArray, importance: FloatArray | None) -> tuple[Columns, ByteArray]:
    """Returns scales' fields and codes of x [n, 256]: sixteen parts, 4 bits a scale and offset."""
    d, m, scales, offsets, codes = fit_parts(x, importance, _Q2)
    return {"d": d, "m": m, "s": scales.astype(np.uint8) | offsets.astype(np.uint8) << 4}, codes


def fit_q3_k(x: FloatArray, importance: FloatArray | None) -> tuple[Columns, ByteArray]:
    """Returns scales' fields and codes of x [n, 256]: sixteen parts, a signed 6-bit scale each."""
    d, _, scales, _, codes = fit_parts(x, importance, _Q3)
    six = (scales + np.float32(32)).astype(np.uint8)
    low, high = pack(six & np.uint8(15), 8, 4), pack(six >> np.uint8(4), 4, 2)
    return {"d": d, "s": np.concatenate([low, high], axis=1)}, codes


def fit_q4_k(x: FloatArray, importance: FloatArray | None) -> tuple[Columns, ByteArray]:
    """Returns scales' fields and codes of x [n, 256]: eight parts with scale and offset each."""
    return _fit_pairs(x, importance, _Q4)


def fit_q5_k(x: FloatArray, importance: FloatArray | None) -> tuple[Columns, ByteArray]:
    """Returns scales' fields and codes of x [n, 256]: as `fit_q4_k`, a bit more a value."""
    return _fit_pairs(x, importance, _Q5)


def fit_q6_k(x: FloatArray, importance: FloatArray | None) -> tuple[Columns, ByteArray]:
    """Returns scales' fields and codes of x [n, 256]: sixteen parts, a signed 8-bit scale each."""
    d, _, scales, _, codes = fit_parts(x, importance, _Q6)
    return {"d": d, "s": scales.astype(np.int8)}, codes


def _fit_pairs(
    x: FloatArray, importance: FloatArray | None, parts: Parts
) -> tuple[Columns, ByteArray]:
    d, m, scales, offsets, codes = fit_parts(x, importance, parts)
    return {"d": d, "m": m, "s": _paired(scales, offsets)}, codes


def fit_parts(
    x: FloatArray, importance: FloatArray | None, parts: Parts
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, ByteArray]:
    """Returns d, m [n], steps of scales and offsets [n, parts], and codes [n, 256]."""
    small = x.reshape(-1, x.shape[1] // parts.count)
    weight = weigh(small, importance).reshape(x.shape)
    d, m, scales, offsets = search_blocks(x, weight, parts)
    scale, offset = d[:, None] * scales, m[:, None] * offsets  # what a reader multiplies with
    raised = small + offset.reshape(-1, 1)
    codes = parts.levels.codes(raised * reciprocal(scale).reshape(-1, 1))
    return d, m, scales, offsets, codes.reshape(x.shape)


def _paired(scales: FloatArray, offsets: FloatArray) -> ByteArray:
    """Returns the 12 bytes that `blocks_k` reads as these scales and offsets [n, 8]."""
    s, o = scales.astype(np.uint8), offsets.astype(np.uint8)
    four = np.uint8(4)
    return np.concatenate(
        [
            s[:, :4] | s[:, 4:] >> four << np.uint8(6),
            o[:, :4] | o[:, 4:] >> four << np.uint8(6),
            (s[:, 4:] & np.uint8(15)) | o[:, 4:] << four,
        ],
        axis=1,
    )
