"""How many requests a key may make in a minute.

For: `--rate`: a bucket for each key that fills evenly and holds a minute's worth.
Not for: how many run or wait at the same time (`miudo.serve.worker`).
Read next: `miudo.serve.guard`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

__all__ = ["Rates"]


class Rates:
    """Buckets of `per_minute` requests, by key; keys are finite, so the buckets are.

    `clock` returns seconds that only grow.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._full, self._clock = float(per_minute), clock
        self._buckets: dict[str, tuple[float, float]] = {}  # what is in it, and when it was so

    def take(self, key: str) -> int | None:
        """Takes one request out of a key's bucket; returns the seconds to wait where none is in."""
        now = self._clock()
        held, then = self._buckets.get(key, (self._full, now))
        held = min(self._full, held + (now - then) * self._full / 60.0)
        if held < 1.0:
            self._buckets[key] = held, now
            return max(1, math.ceil((1.0 - held) * 60.0 / self._full))
        self._buckets[key] = held - 1.0, now
        return None
