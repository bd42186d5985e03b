"""Shares of right answers with their interval.

For: an accuracy that says how sure it is.
Not for: means of other numbers.
Read next: `miudo.evaluate.harness`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Accuracy", "accuracy", "wilson"]

_Z95 = 1.959963984540054
"""Two-sided 95% of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """`value` = right / samples, between `low` and `high` in 95 of 100 draws of such samples."""

    right: int
    samples: int
    value: float
    low: float
    high: float


def accuracy(answers: Iterable[bool]) -> Accuracy:
    """Returns the share of True with its Wilson interval; of nothing, 0 between 0 and 1."""
    right = samples = 0
    for answer in answers:
        right += answer
        samples += 1
    low, high = wilson(right, samples)
    return Accuracy(right, samples, right / samples if samples else 0.0, low, high)


def wilson(right: int, samples: int) -> tuple[float, float]:
    """Returns the 95% score interval of Wilson (1927), which stays inside 0 and 1."""
    if samples == 0:
        return 0.0, 1.0
    share, z2 = right / samples, _Z95**2
    middle = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    spread = math.sqrt(share * (1 - share) / samples + z2 / (4 * samples**2))
    half = _Z95 * spread / (1 + z2 / samples)
    # At 0 and 1 the bound is exactly that; rounding would miss it by 1e-17.
    return (
        0.0 if right == 0 else middle - half,
        1.0 if right == samples else middle + half,
    )
