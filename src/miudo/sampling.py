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
    return _draw(adjusted / settings.temperature, settings, position)


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
) -> npt.NDArray[np.float64]:
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


def _draw(scaled: npt.NDArray[np.float64], settings: SamplingSettings, position: int) -> int:
    # Sums run one by one, as the native core's do: equal to the last bit. The mass and the draw go
    # by id, so that only what a filter must compare is ever sorted.
    ids = np.flatnonzero(np.isfinite(scaled))
    if settings.top_k:
        ids = np.sort(ids[np.lexsort((ids, -scaled[ids]))][: settings.top_k])
    top = float(scaled[ids].max())
    weights = np.array([math.exp(v - top) for v in scaled[ids].tolist()])
    if settings.top_p < 1.0:
        total = float(np.cumsum(weights)[-1])
        order = np.lexsort((ids, -weights))
        # Keep an id while the mass before it is below top_p: the first is always kept.
        before = np.cumsum(weights[order]) - weights[order]
        kept = np.sort(order[before < settings.top_p * total])
        ids, weights = ids[kept], weights[kept]
    if settings.min_p > 0.0:
        kept = np.flatnonzero(weights >= settings.min_p)  # of the greatest, which is 1
        ids, weights = ids[kept], weights[kept]
    cumulative = np.cumsum(weights)
    point = uniform(settings.seed, settings.request, position) * float(cumulative[-1])
    index = min(int(np.searchsorted(cumulative, point, side="right")), weights.size - 1)
    return int(ids[index])
