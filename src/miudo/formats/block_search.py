"""Scales for blocks: searched, not computed, so that what is read back is near what was given.

For: writers of types whose parts of a block have small whole scales (Q2_K to Q6_K, IQ4_XS), or
whose levels are a table (IQ4_NL). The search of a part's scale is llama.cpp's: try grids a little
finer and coarser than the range asks for, fit scale (and offset) to each by weighted least
squares, keep the best. What follows goes further: scales that are rounded to a few bits, and the
block's own float16 scales, are chosen anew by the error that is left once they are rounded.
Not for: the bits (`miudo.formats.blocks_k`).
Read next: `miudo.formats.blocks_k_fit`.

Shapes: m parts of all blocks, w values of a part, n blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from miudo.formats.block_codec import ByteArray, FloatArray, reciprocal

__all__ = ["Levels", "Parts", "fit_offset", "fit_scale", "search_blocks", "weigh"]

_TRIES = 21
# A grid's step is tried from a little finer than the range asks for to a little coarser.
_STRETCH = 0.1
# Less than this of a determinant's terms is what float32 makes of nothing.
_APART = np.float32(1e-5)
# Rounds of: the block's scales by least squares, then steps by the error they leave. The second
# takes a thousandth off the error, the third less (docs/log.md).
_ROUNDS = 1


@dataclass(frozen=True, slots=True)
class Levels:
    """What codes stand for: `values` [k] ascend."""

    values: FloatArray

    def nearest(self, steps: FloatArray) -> FloatArray:
        """Returns the level nearest to each of `steps`, in its shape."""
        if self._whole:
            whole: FloatArray = np.rint(steps)
            return whole.clip(self.values[0], self.values[-1])
        return self.values[self.codes(steps)]

    def codes(self, steps: FloatArray) -> ByteArray:
        """Returns the place in the table of the level nearest to each of `steps`."""
        if self._whole:
            whole: ByteArray = (self.nearest(steps) - self.values[0]).astype(np.uint8)
            return whole
        code = np.zeros(steps.shape, dtype=np.uint8)
        # Some passes of comparisons take less time than a binary search of each value.
        for middle in (self.values[1:] + self.values[:-1]) / 2:
            code += steps > middle
        return code

    @property
    def _whole(self) -> bool:
        return bool(self.values[-1] - self.values[0] == len(self.values) - 1)


@dataclass(frozen=True, slots=True)
class Parts:
    """How a block's parts are scaled: d times a whole step from `least` to `most`, for each.

    With `offsets` there is an offset below, m times a step of the same kind; then `least` is 0.
    """

    count: int
    levels: Levels
    least: int
    most: int
    offsets: bool


def weigh(x: FloatArray, importance: FloatArray | None) -> FloatArray:
    """Returns what an error of each value of parts x [m, w] weighs.

    Without an importance large values weigh more, by their size and that of their part: of the
    rules tried on a trained model this left the next tokens' probabilities nearest (docs/log.md).
    With one it is the weight, and not times such a factor as llama.cpp has it: what is asked for
    is the error of outputs, and that is the sum of importance * error^2.
    """
    if importance is not None:
        return importance.reshape(x.shape)
    weight: FloatArray = np.sqrt(np.mean(x * x, axis=1, keepdims=True)) + np.abs(x)
    return weight


def search_blocks(
    x: FloatArray, weight: FloatArray, parts: Parts
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Returns d, m [n] (float16 values) and the steps of scales and offsets [n, parts].

    x and `weight` are [n, 256].
    """
    x = x.reshape(-1, x.shape[1] // parts.count)
    weight = weight.reshape(x.shape)
    if parts.offsets:
        scales, offsets = fit_offset(x, weight, parts.levels)
        m, offset_steps = _whole(offsets.reshape(-1, parts.count), parts.most)
    else:
        scales = fit_scale(x, weight, parts.levels)
        offset_steps = np.zeros((len(x) // parts.count, parts.count), dtype=np.float32)
        m = offset_steps[:, 0]
    # The scale of greatest magnitude takes the step that reaches farthest.
    d, scale_steps = _whole(
        scales.reshape(-1, parts.count), parts.least if parts.least < 0 else parts.most
    )
    scale_steps = scale_steps.clip(parts.least, parts.most)
    found = _Found(d, m, scale_steps, offset_steps, np.full(len(x), np.inf, np.float32))
    found = _better_steps(x, weight, parts, found)
    for _ in range(_ROUNDS):
        found = _better_scales(x, weight, parts, found)
        found = _better_steps(x, weight, parts, found)
    return found.d, found.m, found.scale_steps, found.offset_steps


@dataclass(frozen=True, slots=True)
class _Found:
    """A block's scales d, m [n], steps [n, parts] and the error of each part [n * parts]."""

    d: FloatArray
    m: FloatArray
    scale_steps: FloatArray
    offset_steps: FloatArray
    error: FloatArray

    def scales(self) -> tuple[FloatArray, FloatArray]:
        """Scales and offsets [m, 1] as a reader has them."""
        scale, offset = self.d[:, None] * self.scale_steps, self.m[:, None] * self.offset_steps
        return scale.reshape(-1, 1), offset.reshape(-1, 1)


def _better_steps(x: FloatArray, weight: FloatArray, parts: Parts, found: _Found) -> _Found:
    """Tries the neighbours of each part's steps."""
    scale_steps, offset_steps, best = found.scale_steps, found.offset_steps, found.error
    moves = [(0, 0), (-1, 0), (1, 0)]
    if parts.offsets:
        moves += [(a, b) for b in (-1, 1) for a in (0, -1, 1)]
    for a, b in moves:
        tried = _Found(
            found.d,
            found.m,
            (found.scale_steps + np.float32(a)).clip(parts.least, parts.most),
            (found.offset_steps + np.float32(b)).clip(0, parts.most if parts.offsets else 0),
            best,
        )
        error = _error_of(x, weight, parts, tried)
        better = error < best
        best = np.where(better, error, best)
        at = better.reshape(scale_steps.shape)
        scale_steps = np.where(at, tried.scale_steps, scale_steps)
        offset_steps = np.where(at, tried.offset_steps, offset_steps)
    return _Found(found.d, found.m, scale_steps, offset_steps, best)


def _better_scales(x: FloatArray, weight: FloatArray, parts: Parts, found: _Found) -> _Found:
    """Fits d and m to what the blocks' codes and steps are, by weighted least squares."""
    scale, offset = found.scales()
    levels = parts.levels.nearest((x + offset) * reciprocal(scale))
    weighted = weight * levels
    up, down = found.scale_steps.astype(np.float64), found.offset_steps.astype(np.float64)
    # A value is d * up * level - m * down: sums of each part, then of the block.
    uu = (up * up * _dot(weighted, levels).reshape(up.shape)).sum(axis=1)
    ux = (up * _dot(weighted, x).reshape(up.shape)).sum(axis=1)
    ud = (up * down * weighted.sum(axis=1).reshape(up.shape)).sum(axis=1)
    dd = (down * down * weight.sum(axis=1).reshape(up.shape)).sum(axis=1)
    dx = (down * _dot(weight, x).reshape(up.shape)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        both = uu * dd - ud * ud
        independent = both > 1e-6 * uu * dd
        d = np.where(independent, (dd * ux - ud * dx) / both, (ux + found.m * ud) / uu)
        m = np.where(independent, (ud * ux - uu * dx) / both, found.m)
    usable = np.isfinite(d) & np.isfinite(m) & (m >= 0) & (np.abs(d) < 65504) & (m < 65504)
    d = np.where(usable, d, found.d).astype(np.float16).astype(np.float32)
    m = np.where(usable, m, found.m).astype(np.float16).astype(np.float32)
    tried = _Found(d, m, found.scale_steps, found.offset_steps, found.error)
    error = _error_of(x, weight, parts, tried)
    better = error.reshape(up.shape).sum(axis=1) < found.error.reshape(up.shape).sum(axis=1)
    return _Found(
        np.where(better, d, found.d),
        np.where(better, m, found.m),
        found.scale_steps,
        found.offset_steps,
        np.where(np.repeat(better, parts.count), error, found.error),
    )


def _error_of(x: FloatArray, weight: FloatArray, parts: Parts, found: _Found) -> FloatArray:
    scale, offset = found.scales()
    off = parts.levels.nearest((x + offset) * reciprocal(scale))
    off *= scale
    off -= offset + x
    return _dot(weight * off, off)


def fit_offset(x: FloatArray, weight: FloatArray, levels: Levels) -> tuple[FloatArray, FloatArray]:
    """Returns scales and offsets [m] such that scale * q - offset is near x [m, w], q from 0.

    An offset is never negative: 0 stays a value that can be had.
    """
    top = float(levels.values[-1])
    sum_w, sum_x = weight.sum(axis=1), _dot(weight, x)
    high = x.max(axis=1)
    low = np.minimum(x.min(axis=1), np.float32(0))
    scale = (high - low) / np.float32(top)
    # Least squares leave of the squares' sum what they account for: no error is summed up anew.
    plain = _error(x, weight, _grid(x, low, high, top, top), scale, low)
    best = _dot(weight * x, x) - plain
    for tried in range(_TRIES):
        # Each grid starts from the best offset so far.
        q = _grid(x, low, high, top - 1 + _STRETCH * tried, top)
        weighted = weight * q
        sum_q, sum_qq, sum_qx = weighted.sum(axis=1), _dot(weighted, q), _dot(weighted, x)
        both = sum_w * sum_qq - sum_q * sum_q
        # Codes that are all alike say nothing of two numbers: noise would solve for them.
        inverse = np.where(both > _APART * sum_w * sum_qq, reciprocal(both), np.float32(0))
        new_low = (sum_qq * sum_x - sum_q * sum_qx) * inverse
        above = new_low > 0
        through_zero = sum_qx * reciprocal(sum_qq)
        new_scale = np.where(above, through_zero, (sum_w * sum_qx - sum_x * sum_q) * inverse)
        new_low = np.where(above, np.float32(0), new_low)
        gained = new_scale * sum_qx + new_low * sum_x
        better = (inverse > 0) & (gained > best)
        best = np.where(better, gained, best)
        scale, low = np.where(better, new_scale, scale), np.where(better, new_low, low)
    return np.maximum(scale, np.float32(0)), -low


def _grid(x: FloatArray, low: FloatArray, high: FloatArray, steps: float, top: float) -> FloatArray:
    """Returns the whole numbers [m, w], 0 to `top`, of a grid with `steps` from low to high."""
    per_step = reciprocal((high - low) / np.float32(steps))
    raised: FloatArray = x - low[:, None]
    raised *= per_step[:, None]
    np.rint(raised, out=raised)
    return raised.clip(0, top, out=raised)


def fit_scale(x: FloatArray, weight: FloatArray, levels: Levels) -> FloatArray:
    """Returns scales [m] such that scale * level is near x [m, w].

    The value of greatest magnitude is tried at and about both the first and the last level.
    """
    at = np.abs(x).argmax(axis=1, keepdims=True)
    raised = x * reciprocal(np.take_along_axis(x, at, axis=1))  # -1 to 1, the greatest is 1
    scale = np.zeros(len(x), dtype=np.float32)
    best = np.zeros(len(x), dtype=np.float32)
    first, last = levels.values[0], levels.values[-1]
    stretch = (last - first) / np.float32(len(levels.values) - 1) * np.float32(_STRETCH)
    for end in (first, last):
        for tried in (0, *range(-9, 0), *range(1, 10)):
            q = levels.nearest(raised * (end + stretch * np.float32(tried)))
            weighted = weight * q
            sum_qx, sum_qq = _dot(weighted, x), _dot(weighted, q)
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


def _whole(parts: FloatArray, reach: int) -> tuple[FloatArray, FloatArray]:
    """Returns float16 scales [n] and whole steps [n, parts] whose products are near `parts`.

    The one of greatest magnitude becomes `reach` steps.
    """
    at = np.abs(parts).argmax(axis=1, keepdims=True)
    largest = np.take_along_axis(parts, at, axis=1)
    steps = np.rint(parts * reciprocal(largest) * np.float32(reach))
    d = (largest[:, 0] / np.float32(reach)).astype(np.float16).astype(np.float32)
    return d, steps
