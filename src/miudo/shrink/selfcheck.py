"""Checks that every run makes of itself, by name.

For: a list of what was checked in the report, and a stop with the name of what failed.
Not for: tests of the program, or the methods' own checks inside `calibrate` and `apply`.
Read next: `miudo.shrink.stored`.
"""

from __future__ import annotations

from collections.abc import Iterable

from miudo.errors import CheckFailedError

__all__ = ["Checks"]


class Checks:
    """Counts the checks that held, by name."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def passed(self, name: str, times: int = 1) -> None:
        """Notes a check that something else made: it would have raised."""
        self.counts[name] = self.counts.get(name, 0) + times

    def holds(self, name: str, condition: bool, found: str = "") -> None:
        """Raises CheckFailedError with `name` and what was `found` unless `condition` holds."""
        if not condition:
            raise CheckFailedError(
                f"the self-check failed{f' ({found})' if found else ''}",
                where=name,
                remedy="Nothing was chosen; please report it with OUT/forecast.json",
            )
        self.passed(name)

    def take(self, counts: Iterable[tuple[str, int]]) -> None:
        """Adds what was checked in an earlier sitting."""
        for name, times in counts:
            self.passed(name, times)
