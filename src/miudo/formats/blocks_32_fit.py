"""Scales for blocks of 32 values: searched by how much each value's error weighs.

For: writing Q4_0 to Q8_0 where it is known how large each column's inputs are. The method is
llama.cpp's for an importance matrix (try grids finer and coarser than the range asks for, fit
scale and offset by weighted least squares, keep the best), with two differences: the greatest
value may lie at either end of the grid, and what is compared in the end is the error with the
scales as they are stored.
Not for: plain rounding (`miudo.formats.blocks_32`).
Read next: `miudo.formats.blocks_32`.

Shapes: n blocks of w values; weights [n, w] are not negative.
"""

from __future__ import annotations

import numpy as np

from miudo.formats.block_codec import FloatArray, reciprocal

__all__ = ["fit_offset", "fit_scale"]

# A grid so much wider than the values leaves steps unused, so much narrower cuts the greatest.
_STRETCHES = tuple(float(s) for s in np.linspace(0.84, 1.36, 27))
_ROUNDS = 3


def fit_scale(
    x: FloatArray, weight: FloatArray, low: int, high: int, start: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Returns scales [n, 1], exact in float16, and whole numbers [n, w] from `low` to `high`.

    scale * number is as near to x [n, w] as the search found, weighted squares summed; never
    farther than with the scales `start` [n, 1].
    """
    at = np.abs(x).argmax(axis=1, keepdims=True)
    raised = x * reciprocal(np.take_along_axis(x, at, axis=1))  # the greatest is 1
    weighted = weight * x
    scale, best = start[:, 0].copy(), np.zeros(len(x), dtype=np.float32)
    for end in {low, high} if low != -high else {high}:
        for stretch in _STRETCHES:
            q = np.clip(np.rint(raised * np.float32(end * stretch)), low, high)
            qx, qq = _dot(weighted, q), _dot(weight * q, q)
            new = qx * reciprocal(qq)
            gained = new * qx  # of the squares' sum
            better = gained > best
            best, scale = np.where(better, gained, best), np.where(better, new, scale)
    kept, numbers, least = _with_scale(x, weight, start, low, high)
    tried = scale[:, None]
    for _ in range(_ROUNDS):
        held, q, error = _with_scale(x, weight, tried, low, high)
        better = error < least
        least, kept = np.where(better, error, least), np.where(better, held, kept)
        numbers = np.where(better, q, numbers)
        tried = (_dot(weighted, q) * reciprocal(_dot(weight * q, q)))[:, None]
    return kept, numbers


def fit_offset(
    x: FloatArray, weight: FloatArray, top: int, start: tuple[FloatArray, FloatArray]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Returns scales and offsets [n, 1], exact in float16, and whole numbers [n, w], 0 to `top`.

    scale * number + offset is as near to x [n, w] as the search found, weighted squares summed;
    never farther than with `start`, a scale and an offset [n, 1].
    """
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    scale, offset, numbers, least = _with_offset(x, weight, *start, top)
    for stretch in _STRETCHES:
        tried = (high - low) * reciprocal(np.full_like(high, top * stretch))
        middle = (high + low) / np.float32(2)
        pair = tried, middle - tried * np.float32(top / 2)
        for _ in range(2):  # as the range asks for, then as the numbers found ask for
            q = np.clip(np.rint((x - pair[1]) * reciprocal(pair[0])), 0, top)
            pair = _least_squares(x, weight, q)
        s, o, q, error = _with_offset(x, weight, *pair, top)
        better = error < least
        least, numbers = np.where(better, error, least), np.where(better, q, numbers)
        scale, offset = np.where(better, s, scale), np.where(better, o, offset)
    return scale, offset, numbers


def _with_scale(
    x: FloatArray, weight: FloatArray, scale: FloatArray, low: int, high: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Returns the scale as stored, the nearest numbers with it and the error, [n, 1] too."""
    held = _stored(scale)
    q = np.clip(np.rint(x * reciprocal(held)), low, high)
    off = x - held * q
    return held, q, _dot(weight * off, off)[:, None]


def _with_offset(
    x: FloatArray, weight: FloatArray, scale: FloatArray, offset: FloatArray, top: int
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    held, below = _stored(scale), _stored(offset)
    q = np.clip(np.rint((x - below) * reciprocal(held)), 0, top)
    off = x - (held * q + below)
    return held, below, q, _dot(weight * off, off)[:, None]


def _least_squares(
    x: FloatArray, weight: FloatArray, q: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Returns the scale and offset [n, 1] that put q [n, w] nearest to x."""
    total = weight.sum(axis=1)
    inverse = reciprocal(total)
    mean_q, mean_x = _dot(weight, q) * inverse, _dot(weight, x) * inverse
    apart = q - mean_q[:, None]
    weighted = weight * apart
    scale = _dot(weighted, x) * reciprocal(_dot(weighted, apart))
    return scale[:, None], (mean_x - scale * mean_q)[:, None]


def _stored(numbers: FloatArray) -> FloatArray:
    return numbers.astype(np.float16).astype(np.float32)


def _dot(a: FloatArray, b: FloatArray) -> FloatArray:
    sums: FloatArray = np.einsum("nw,nw->n", a, b)
    return sums
