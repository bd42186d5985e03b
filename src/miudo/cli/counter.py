"""How far long work has come.

For: a count and its rate, time left where the end is known: rewritten in place on a terminal,
a line now and then elsewhere.
Not for: training (`miudo.train.progress`).
Read next: `miudo.cli.evaluating`.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

import click

__all__ = ["Counter"]

_LIVE_S, _LINE_S = 0.2, 15.0


class Counter:
    """Writes to standard error while its `with` block runs; short work says nothing."""

    def __init__(self, unit: str) -> None:
        self._unit, self._live = unit, sys.stderr.isatty()
        self._start = self._last = time.monotonic()
        self._open, self._first = False, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._open:
            click.echo("\r\x1b[K", nl=False, err=True)

    def show(self, count: int, total: int | None = None) -> None:
        """Tells of `count`, of `total` if that is known, unless it was told of a moment ago."""
        now = time.monotonic()
        if total is not None and self._first == 0:
            self._first = count  # what was there when the work began took no time
        if now - self._last < (_LIVE_S if self._live else _LINE_S):
            return
        self._last = now
        rate = (count - self._first) / (now - self._start)
        text = f"{count:,} {self._unit}, {rate:,.0f}/s"
        if total is not None:
            left = f", {(total - count) / rate:,.0f} s left" if rate > 0 else ""
            text = f"{count:,} of {total:,} {self._unit}, {rate:,.1f}/s{left}"
        click.echo(f"\r\x1b[K{text}" if self._live else text, nl=not self._live, err=True)
        self._open = self._live
