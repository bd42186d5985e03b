"""Thresholds from a target: a share of prompts for the dearer model, or a quality to keep.

For: `miudo route calibrate`, on the user's own examples; every number with its interval.
Not for: asking the models (`miudo.route.observing`).
Read next: `miudo.route.curve`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from miudo.errors import CheckFailedError, DataError
from miudo.evaluate.accuracy import Accuracy, accuracy

__all__ = ["Calibrated", "for_quality", "for_share"]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A prompt whose `doubt` is above `threshold` goes on to the dearer target.

    `passed_on` is the share of examples that do, `quality` that of right answers so (None where
    it is not known), both with a 95% interval.
    """

    threshold: float
    passed_on: Accuracy
    quality: Accuracy | None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return asdict(self)


def for_share(
    doubts: Sequence[float],
    share: float,
    *,
    cheap: Sequence[bool] | None = None,
    dear: Sequence[bool] | None = None,
) -> Calibrated:
    """Returns the threshold that passes on at most `share` of the examples, and as many as it can.

    `doubts` are complexities, or 1 - confidence. Raises DataError without examples.
    """
    _check(doubts)
    values = np.sort(np.asarray(doubts))
    most = int(share * len(values) + 1e-9)
    # What equals the threshold stays: among equals all do, so that the share is never exceeded.
    below = max(0.0, float(np.nextafter(values[0], -1.0)))
    threshold = float(values[len(values) - most - 1]) if most < len(values) else below
    return _at(threshold, doubts, cheap, dear)


def for_quality(
    doubts: Sequence[float], cheap: Sequence[bool], dear: Sequence[bool], quality: float
) -> Calibrated:
    """Returns the threshold that passes on least and has at least `quality` right answers.

    `cheap` and `dear` say where each model was right. Raises CheckFailedError where no threshold
    reaches it, naming the best there is.
    """
    _check(doubts)
    order = np.argsort(-np.asarray(doubts), kind="stable")
    sorted_doubts = np.asarray(doubts)[order]
    gains = (np.asarray(dear, dtype=int) - np.asarray(cheap, dtype=int))[order]
    right = int(np.sum(cheap)) + np.concatenate([[0], np.cumsum(gains)])
    needed = quality * len(order) - 1e-9
    below = float(np.nextafter(sorted_doubts[-1], -1.0))
    thresholds = [*sorted_doubts.tolist(), below]  # the i-th passes on the i of most doubt
    for passed, threshold in enumerate(thresholds):
        between = passed == 0 or sorted_doubts[passed - 1] > threshold
        if between and threshold >= 0.0 and right[passed] >= needed:
            return _at(threshold, doubts, cheap, dear)
    best = right.max() / len(order)
    raise CheckFailedError(
        f"no threshold gives {quality:.1%} right answers, the best is {best:.1%}",
        remedy="Ask for less, or take a better model as the dearer one",
    )


def _at(
    threshold: float,
    doubts: Sequence[float],
    cheap: Sequence[bool] | None,
    dear: Sequence[bool] | None,
) -> Calibrated:
    passed = [doubt > threshold for doubt in doubts]
    quality = None
    if cheap is not None and dear is not None:
        quality = accuracy(
            bool(d if on else c) for on, c, d in zip(passed, cheap, dear, strict=True)
        )
    return Calibrated(threshold, accuracy(passed), quality)


def _check(doubts: Sequence[float]) -> None:
    if not doubts:
        raise DataError("there are no examples", remedy="Give some, best a few hundred")
