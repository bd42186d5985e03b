"""The sampler's oracle: how an id is drawn from logits, in NumPy.

For: the PyTorch engine, the fake engine, and the tests of the native sampler.
Not for: speed; `native/core/sampler.cc` is the same algorithm, step for step.
Read next: `miudo.protocol.SamplingSettings` for the order of the filters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from miudo.errors import RequestError
from miudo.philox import uniform
from miudo.protocol import SamplingSettings

__all__ = ["log_softmax_at", "sample"]

_Doubles = npt.NDArray[np.float64]
_STRETCH = 512  # ids whose weights are summed apart
_LEAST = -708.0
_LOG2_E = float.fromhex("0x1.71547652b82fep0")
_LN2 = (float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33"))
_MAGIC = 1.5 * 2.0**52  # adding it rounds to whole numbers


def sample(
    logits: npt.NDArray[np.float32],
    settings: SamplingSettings,
    *,
    position: int,
    seen: Iterable[int] = (),
    mask: npt.NDArray[np.bool_] | None = None,
) -> int:
    """Returns the id drawn from `logits` [V] for the token at `position`.

    `seen` are the ids of the conversation so far, for the repetition penalty. Raises
    RequestError if the mask forbids everything or no logit is finite.
    """
    adjusted = _adjust(logits, settings, seen, mask)
    best = int(np.argmax(adjusted))
    if not math.isfinite(adjusted[best]):
        raise RequestError("no id can be drawn: every logit is masked or not finite")
    if settings.temperature == 0.0:
        return best
    return _draw(adjusted, settings, position)


def log_softmax_at(logits: npt.NDArray[np.float32], token: int) -> float:
    """Returns the natural log-probability of `token` under softmax of `logits` [V]."""
    values = logits.astype(np.float64)
    top = float(values.max())
    return float(values[token]) - top - math.log(float(np.exp(values - top).sum()))


def _adjust(
    logits: npt.NDArray[np.float32],
    settings: SamplingSettings,
    seen: Iterable[int],
    mask: npt.NDArray[np.bool_] | None,
) -> _Doubles:
    values = logits.astype(np.float64)
    values[np.isnan(values)] = -np.inf
    if mask is not None:
        values[~mask] = -np.inf
    for token, bias in settings.logit_bias:
        if token < values.size:
            values[token] += bias
    if settings.repetition_penalty != 1.0:
        ids = np.array(sorted(set(seen)), dtype=np.int64)
        chosen = values[ids]
        penalty = settings.repetition_penalty
        values[ids] = np.where(chosen > 0, chosen / penalty, chosen * penalty)
    return values


def _exp(x: _Doubles) -> _Doubles:
    """e^x for x <= 0, 0 below e^-708: products and sums that every processor rounds alike."""
    held = np.maximum(x, _LEAST)
    magic = held * _LOG2_E + _MAGIC
    n = magic - _MAGIC
    r = (held - n * _LN2[0]) - n * _LN2[1]
    p = np.full_like(r, 1.0 / math.factorial(12))
    for i in range(11, -1, -1):
        p = p * r + 1.0 / math.factorial(i)
    return np.where(x >= _LEAST, np.ldexp(p, n.astype(np.int64)), 0.0)


def _only(weights: _Doubles, kept: npt.NDArray[np.int64]) -> _Doubles:
    """Returns the weights with all but `kept` at 0."""
    left = np.zeros_like(weights)
    left[kept] = weights[kept]
    return left


def _masses(weights: _Doubles) -> _Doubles:
    """Returns the sums of weights up to the end of each stretch: of every eighth, then of these."""
    padded = np.zeros(-(-weights.size // _STRETCH) * _STRETCH)
    padded[: weights.size] = weights
    lanes = np.cumsum(padded.reshape(-1, _STRETCH // 8, 8), axis=1)[:, -1]
    return np.cumsum(np.cumsum(lanes, axis=1)[:, -1])


def _draw(values: _Doubles, settings: SamplingSettings, position: int) -> int:
    # Sums run by stretches in a fixed order, as the native core's do: equal to the last bit. Mass
    # and draw go by id, so that only what a filter must compare is ever sorted.
    weights = _exp((values - values.max()) * (1.0 / settings.temperature))
    ids = np.flatnonzero(np.isfinite(values))
    if 0 < settings.top_k < ids.size:
        weights = _only(weights, ids[np.lexsort((ids, -values[ids]))][: settings.top_k])
    if settings.top_p < 1.0:
        order = np.lexsort((np.arange(weights.size), -weights))
        # Keep an id while the mass before it is below top_p: the first is always kept.
        before = np.cumsum(weights[order]) - weights[order]
        weights = _only(weights, order[before < settings.top_p * _masses(weights)[-1]])
    if settings.min_p > 0.0:
        weights = np.where(weights >= settings.min_p, weights, 0.0)  # the greatest is 1
    masses = _masses(weights)
    point = uniform(settings.seed, settings.request, position) * float(masses[-1])
    stretch = int(np.searchsorted(masses, point, side="right"))
    drawn = np.flatnonzero(weights)
    if stretch == masses.size:  # rounding left the point behind all
        return int(drawn[-1])
    before_it = float(masses[stretch - 1]) if stretch else 0.0
    drawn = drawn[drawn // _STRETCH == stretch]
    behind = np.searchsorted(np.cumsum(weights[drawn]), point - before_it, side="right")
    return int(drawn[min(int(behind), drawn.size - 1)])
