"""How sure a model was of what it wrote, from its tokens' probabilities.

For: the cascade: an answer that its model is not sure of goes to the next target.
Not for: whether the answer is true: a model may be surely wrong.
Read next: `miudo.route.observing`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from miudo.route.targets import Measure

__all__ = ["Confidence", "confidence"]


@dataclass(frozen=True, slots=True)
class Confidence:
    """Each from 0 to 1. `mean`: the geometric mean of the tokens' probabilities; `min`: the least.

    `margin`: the least lead of the most probable token over the second; None where nobody asked.
    """

    mean: float
    min: float
    margin: float | None = None

    def by(self, measure: Measure) -> float:
        """Returns the value of a measure. Raises ValueError where it was not asked for."""
        value: float | None = getattr(self, measure)
        if value is None:
            raise ValueError(f"{measure} was not asked for")
        return value


def confidence(
    logprobs: Sequence[float], best: Sequence[tuple[float, float]] | None = None
) -> Confidence:
    """Returns the confidence of an answer from its tokens' natural log-probabilities.

    `best` holds those of the two most probable tokens at each place. An answer of no tokens has
    a confidence of 0: nothing was said.
    """
    if not logprobs:
        return Confidence(0.0, 0.0, 0.0 if best is not None else None)
    mean = math.exp(min(0.0, math.fsum(logprobs) / len(logprobs)))
    margin = None if best is None else min(math.exp(a) - math.exp(b) for a, b in best)
    return Confidence(mean, math.exp(min(0.0, *logprobs)), margin)
