"""Time divided among candidates: many for a few steps, few for many (successive halving).

For: turning minutes into rounds of so many candidates and steps, once, before any training.
Not for: choosing who goes on (`miudo.shrink.search`).
Read next: `miudo.shrink.search`.

Karnin et al. 2013, Jamieson and Talwalkar 2016. Here every round trains anew: a schedule that is
stretched is another schedule, and an order of steps must be kept. That costs a round's seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["FEWEST_STEPS", "Round", "plan_rounds", "rounds_of_steps"]

_FACTOR = 3
_FINALISTS = 3
_LAST_SHARE = 0.6
"""Of the seconds; rounds before the last share the rest alike."""

FEWEST_STEPS = 20
"""Fewer steps of learning tell nothing: rather fewer candidates."""


@dataclass(frozen=True, slots=True)
class Round:
    """So many candidates learn for so many steps each."""

    candidates: int
    steps: int


def plan_rounds(
    costs: Sequence[float], seconds: float, *, extra: float = 0.0, fewest: int = FEWEST_STEPS
) -> tuple[Round, ...]:
    """Returns rounds that take at most `seconds`, whoever goes on from one to the next.

    `costs` are seconds a step of each candidate, best first; what a step of all controls
    of the last round costs is `extra`. Empty where not even one candidate has time for one step.
    """
    n = len(costs)
    while n > 0:
        rounds = _rounds(costs[:n], seconds, extra)
        if all(r.steps >= fewest for r in rounds) or n == 1:
            return rounds if rounds[-1].steps > 0 else ()
        n -= 1
    return ()


def rounds_of_steps(n: int, steps: int) -> tuple[Round, ...]:
    """Returns the rounds for `n` candidates of which the last learn for `steps`."""
    widths = _widths(n)
    return tuple(
        Round(width, max(1, steps // _FACTOR ** (len(widths) - 1 - i)))
        for i, width in enumerate(widths)
    )


def _rounds(costs: Sequence[float], seconds: float, extra: float) -> tuple[Round, ...]:
    widths = _widths(len(costs))
    dearest = sorted(costs, reverse=True)
    early = (1.0 - _LAST_SHARE) / max(1, len(widths) - 1)
    found = []
    for i, width in enumerate(widths):
        last = i == len(widths) - 1
        share = (1.0 if len(widths) == 1 else _LAST_SHARE) if last else early
        # Whoever goes on may be the dearest ones.
        step_s = sum(dearest[:width]) + (extra if last else 0.0)
        found.append(Round(width, int(share * seconds / max(step_s, 1e-9))))
    return tuple(found)


def _widths(n: int) -> list[int]:
    """Returns how many learn in each round: a third of those before, three at last."""
    widths = [n] if n else []
    while widths and widths[-1] > _FINALISTS:
        widths.append(max(_FINALISTS, -(-widths[-1] // _FACTOR)))
    return widths
