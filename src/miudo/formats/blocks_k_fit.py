"""Scales for blocks of 256 values: searched, not computed, so that the error is small.

For: writing Q4_K and Q6_K. The method is llama.cpp's for k-quants without an importance matrix:
try grids a little finer and coarser than the range asks for, fit scale (and offset) to each by
weighted least squares, keep the best; then round the parts' scales to a few bits.
Not for: reading them (`miudo.formats.blocks_k`).
Read next: `miudo.formats.blocks`.

Shapes: n blocks, m parts of all blocks, w values of a part.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miudo.formats.block_codec import ByteArray, Columns, FloatArray, as_float, reciprocal

__all__ = ["fit_q4_k", "fit_q6_k"]


def fit_q4_k(x: FloatArray, importance: FloatArray | None) -> tuple[Columns, ByteArray]:
    """Returns scales' fields and codes of x [n, 256]: eight parts with scale and offset each."""
    parts = x.reshape(-1, 32)
    scales, offsets = _fit_offset(parts, 15)
    d, scale_steps = _six_bits(scales.reshape(-1, 8))
    m, offset_steps = _six_bits(offsets.reshape(-1, 8))
    step = as_float(d) * scale_steps  # what a reader multiplies with
    below = as_float(m) * offset_steps
    raised = (x.reshape(-1, 8, 32) + below[:, :, None]) * reciprocal(step)[:, :, None]
    q = np.clip(np.rint(raised), 0, 15).astype(np.uint8).reshape(-1, 256)
    return {"d": d, "m": m, "s": _paired(scale_steps, offset_steps)}, q


def fit_q6_k(x: FloatArray, importance: FloatArray | None) -> tuple[Columns, ByteArray]:
    """Returns scales' fields and codes of x [n, 256]: sixteen parts with a signed scale each."""
    scales = _fit(x.reshape(-1, 16), 32).reshape(-1, 16)
    at = np.abs(scales).argmax(axis=1, keepdims=True)
    largest = np.take_along_axis(scales, at, axis=1)
    d = (largest[:, 0] / np.float32(-128)).astype(np.float16)
    steps = np.minimum(np.rint(scales * reciprocal(largest) * np.float32(-128)), 127)
    inverse = reciprocal(as_float(d) * steps)
    q = np.clip(np.rint(x.reshape(-1, 16, 16) * inverse[:, :, None]), -32, 31) + np.float32(32)
    return {"s": steps.astype(np.int8), "d": d}, q.astype(np.uint8).reshape(-1, 256)


def _fit_offset(x: FloatArray, top: int) -> tuple[FloatArray, FloatArray]:
    """Returns scales and offsets [m] such that scale * q - offset is near x [m, w], q 0 to top.

    Large values weigh more. An offset is never negative: 0 stays a value that can be had.
    """
    weight = np.sqrt(np.mean(x * x, axis=1, keepdims=True)) + np.abs(x)
    sum_w, sum_x = weight.sum(axis=1), _dot(weight, x)
    high = x.max(axis=1)
    low = np.minimum(x.min(axis=1), np.float32(0))
    scale = (high - low) / np.float32(top)
    best = _error(x, weight, _grid(x, low, high, top, top), scale, low)
    for tried in range(21):
        # Each grid starts from the best offset so far.
        q = _grid(x, low, high, top - 1 + 0.1 * tried, top)
        weighted = weight * q
        sum_q, sum_qq, sum_qx = weighted.sum(axis=1), _dot(weighted, q), _dot(weighted, x)
        inverse = reciprocal(sum_w * sum_qq - sum_q * sum_q)
        new_low = (sum_qq * sum_x - sum_q * sum_qx) * inverse
        above = new_low > 0
        through_zero = sum_qx * reciprocal(sum_qq)
        new_scale = np.where(above, through_zero, (sum_w * sum_qx - sum_x * sum_q) * inverse)
        new_low = np.where(above, np.float32(0), new_low)
        error = _error(x, weight, q, new_scale, new_low)
        better = (inverse > 0) & (error < best)
        best = np.where(better, error, best)
        scale, low = np.where(better, new_scale, scale), np.where(better, new_low, low)
    return np.maximum(scale, np.float32(0)), -low


def _grid(x: FloatArray, low: FloatArray, high: FloatArray, steps: float, top: int) -> FloatArray:
    """Returns the whole numbers [m, w], 0 to `top`, of a grid with `steps` from low to high."""
    per_step = reciprocal((high - low) / np.float32(steps))
    raised: FloatArray = np.rint((x - low[:, None]) * per_step[:, None])
    return raised.clip(0, top)


def _fit(x: FloatArray, half: int) -> FloatArray:
    """Returns scales [m] such that scale * q is near x [m, w], q from -half to half - 1.

    The weights are the squares of the values.
    """
    at = np.abs(x).argmax(axis=1, keepdims=True)
    raised = x * reciprocal(np.take_along_axis(x, at, axis=1))  # -1 to 1, the greatest is 1
    weighted = x * x
    scale = np.zeros(len(x), dtype=np.float32)
    best = np.zeros(len(x), dtype=np.float32)
    for tried in (0, *range(-9, 0), *range(1, 10)):
        q = np.clip(np.rint(raised * np.float32(-half - 0.1 * tried)), -half, half - 1)
        sum_qx, sum_qq = _dot(weighted * q, x), _dot(weighted * q, q)
        new = sum_qx * reciprocal(sum_qq)
        gained = new * sum_qx  # how much of the squares' sum this grid accounts for
        better = gained > best
        best, scale = np.where(better, gained, best), np.where(better, new, scale)
    return scale


def _dot(a: FloatArray, b: FloatArray) -> FloatArray:
    sums: FloatArray = np.einsum("mw,mw->m", a, b)
    return sums


def _error(
    x: FloatArray, weight: FloatArray, q: FloatArray, scale: FloatArray, low: FloatArray
) -> FloatArray:
    off = q * scale[:, None] + low[:, None] - x
    return _dot(weight * off, off)


def _six_bits(parts: FloatArray) -> tuple[npt.NDArray[np.float16], FloatArray]:
    """Returns float16 scales [n] and whole numbers [n, 8] from 0 to 63 whose product is `parts`."""
    largest = parts.max(axis=1, keepdims=True)
    steps = np.minimum(np.rint(parts * reciprocal(largest) * np.float32(63)), 63)
    return (largest[:, 0] / np.float32(63)).astype(np.float16), steps


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
