"""What quality costs: points of cost and quality as a threshold moves, and the area below them.

For: saying how good a way to route is, beside always-small, always-large and the best possible.
Not for: choosing one threshold (`miudo.route.calibrating`).
Read next: `benchmarks/routing.py`.

Shapes: N examples, sorted from the one passed on first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Point", "Side", "area", "best_possible", "sweep"]


@dataclass(frozen=True, slots=True)
class Point:
    """Mean cost of an answer, share of right ones, and the share that the dearer model gave."""

    cost: float
    quality: float
    passed_on: float


@dataclass(frozen=True, slots=True)
class Side:
    """What one model cost and where it was right, [N] each."""

    cost: npt.NDArray[np.float64]
    right: npt.NDArray[np.bool_]


def sweep(doubts: Sequence[float], cheap: Side, dear: Side, *, both: bool = False) -> list[Point]:
    """Returns the points of every threshold, from nobody passed on to everybody.

    `both`: the cheap model is paid also where its answer is not taken, as in a cascade. Equal
    doubts are passed on together.
    """
    values = np.asarray(doubts)
    order = np.argsort(-values, kind="stable")
    values, n = values[order], len(values)
    spent = dear.cost - (0.0 if both else cheap.cost)
    gains = dear.right.astype(np.int64) - cheap.right
    cost = cheap.cost.sum() + np.concatenate([[0.0], np.cumsum(spent[order])])
    right = cheap.right.sum() + np.concatenate([[0], np.cumsum(gains[order])])
    ends = np.ones(n + 1, dtype=bool)
    ends[1:n] = values[:-1] > values[1:]
    at = np.flatnonzero(ends)
    return [Point(float(cost[i] / n), float(right[i] / n), float(i / n)) for i in at]


def best_possible(cheap: Side, dear: Side) -> list[Point]:
    """Returns the curve of one who knows who is right: first where only the dear one is.

    Of these first where it costs least.
    """
    helps = dear.right.astype(np.float64) - cheap.right
    spent = np.maximum(dear.cost - cheap.cost, 1e-9)
    return sweep((helps / spent).tolist(), cheap, dear)


def area(points: Sequence[Point], low: float, high: float) -> float:
    """Returns the mean quality over costs from `low` to `high`, straight lines between points.

    Mixing two neighbours by lot gives every point of the line between them. Beyond the last
    point its quality holds; the first must not cost more than `low`, but for what resampling moves.
    """
    ordered = sorted(points, key=lambda point: point.cost)
    costs = np.array([point.cost for point in ordered])
    quality = np.array([point.quality for point in ordered])
    inner = costs[(costs > low) & (costs < high)]
    at = np.concatenate([[low], inner, [high]])
    values = np.interp(at, costs, quality)
    return float(np.sum((values[1:] + values[:-1]) / 2 * np.diff(at)) / (high - low))
