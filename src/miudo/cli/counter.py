"""How far long work without a known end has come.

For: a count and its rate: rewritten in place on a terminal, a line now and then elsewhere.
Not for: training, which knows its end (`miudo.train.progress`).
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
        self._open = False

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

    def show(self, count: int) -> None:
        """Tells of `count`, unless it was told of a moment ago."""
        now = time.monotonic()
        if now - self._last < (_LIVE_S if self._live else _LINE_S):
            return
        self._last = now
        text = f"{count:,} {self._unit}, {count / (now - self._start):,.0f}/s"
        click.echo(f"\r\x1b[K{text}" if self._live else text, nl=not self._live, err=True)
        self._open = self._live
