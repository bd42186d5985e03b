"""Thresholds from a target: a share of prompts for the dearer model, or a quality to keep.

For: `miudo route calibrate`, on the user's own examples; every number with its interval.
Not for: asking the models (`miudo.route.observing`).
Read next: `miudo.route.jobs`.

`doubts` are one number an example, such as its complexity, or the cheap answer's confidence with
the sign turned. Whoever is above the threshold goes on to the dearer target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from miudo.errors import CheckFailedError, DataError
from miudo.evaluate.accuracy import Accuracy, accuracy

__all__ = ["Calibrated", "Rights", "for_quality", "for_share"]


@dataclass(frozen=True, slots=True)
class Rights:
    """Where the cheap and the dear model were right, an example each."""

    cheap: Sequence[bool]
    dear: Sequence[bool]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """`passed_on` is the share of the examples above `threshold`.

    `quality` is the share of right answers so, None where it is not known. Both have an interval.
    """

    threshold: float
    passed_on: Accuracy
    quality: Accuracy | None


def for_share(
    doubts: Sequence[float], share: float, *, floor: float, rights: Rights | None = None
) -> Calibrated:
    """Returns the threshold that passes on as many as it can, and at most `share`.

    Equal doubts stay together. No threshold is below `floor`. Raises DataError without examples.
    """
    values, below = _sorted(doubts)
    most = int(share * len(values) + 1e-9)
    return _at(max(floor, float([*values, below][most])), doubts, rights)


def for_quality(
    doubts: Sequence[float], quality: float, *, floor: float, rights: Rights
) -> Calibrated:
    """Returns the threshold that passes on least and keeps at least `quality` right answers.

    Raises CheckFailedError where no threshold does, naming the best there is.
    """
    values, below = _sorted(doubts)
    order = np.argsort(-np.asarray(doubts), kind="stable")
    gains = (np.asarray(rights.dear, dtype=int) - np.asarray(rights.cheap, dtype=int))[order]
    right = int(np.sum(rights.cheap)) + np.concatenate([[0], np.cumsum(gains)])
    reached = 0.0
    for passed, threshold in enumerate([*values, below]):  # the i-th passes on the i in most doubt
        if threshold >= floor and (passed == 0 or values[passed - 1] > threshold):
            reached = max(reached, float(right[passed]) / len(values))
            if reached >= quality - 1e-9:
                return _at(float(threshold), doubts, rights)
    raise CheckFailedError(
        f"no threshold gives {quality:.1%} right answers, the best gives {reached:.1%}",
        remedy="Ask for less, or take a better model as the dearer one",
    )


def _sorted(doubts: Sequence[float]) -> tuple[list[float], float]:
    """Returns the doubts, the greatest first, and a number below all of them."""
    if not doubts:
        raise DataError("there are no examples", remedy="Give some, best a few hundred")
    values = sorted(doubts, reverse=True)
    return values, float(np.nextafter(values[-1], -np.inf))


def _at(threshold: float, doubts: Sequence[float], rights: Rights | None) -> Calibrated:
    passed = [doubt > threshold for doubt in doubts]
    quality = None
    if rights is not None:
        pairs = zip(passed, rights.cheap, rights.dear, strict=True)
        quality = accuracy(bool(dear if on else cheap) for on, cheap, dear in pairs)
    return Calibrated(threshold, accuracy(passed), quality)
