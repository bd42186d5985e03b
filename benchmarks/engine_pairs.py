"""Runtimes measured in turns, each in a process of its own, and the interval of their ratio.

For: `engine.py`: what drifts on a machine falls on all sides of a row, and what other processes
took is known for each sample.
Not for: what is measured (`engine_rows.py`), or how (`engine_worker.py`).
Read next: `engine_rows.py`.
"""

from __future__ import annotations

import json
import math
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from engine_worker import machine_seconds

HERE = Path(__file__).parent
PATIENCE_S = 900.0
COVERAGE = 0.95
REST_S = 2.0
FEWEST = 6  # pairs of which least and greatest cover the median at 95%


class NotMeasured(Exception):  # noqa: N818 - a state of a table's cell
    """A side that is not here, or that failed; the message says which."""


@dataclass(frozen=True)
class Sample:
    """One measurement: `amount` is tokens, bytes, operations or starts."""

    amount: float
    seconds: float
    cpu_s: float = 0.0
    foreign: float = 0.0
    stolen: float = 0.0
    cache_bytes: float = 0.0

    @property
    def rate(self) -> float:
        """Amount a second."""
        return self.amount / self.seconds


class Worker:
    """A runtime that has loaded one model. Raises NotMeasured where that fails."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        try:
            self.version = str(self._line()["version"])
        except NotMeasured:
            self.close()
            raise

    def ask(self, order: Mapping[str, Any]) -> Sample:
        """Returns what the order gave. Raises NotMeasured."""
        if self.process.stdin is None:
            raise RuntimeError("a worker without a pipe")
        try:
            self.process.stdin.write(json.dumps(dict(order)) + "\n")
        except OSError as error:
            raise NotMeasured("its process has ended") from error
        return Sample(**self._line())

    def _line(self) -> dict[str, Any]:
        out = self.process.stdout
        if out is None:
            raise RuntimeError("a worker without a pipe")
        if not select.select([out], [], [], PATIENCE_S)[0]:
            self.process.kill()
            raise NotMeasured(f"no answer in {PATIENCE_S:.0f} s")
        text = out.readline()
        if not text:
            raise NotMeasured(f"its process ended with {self.process.wait()}")
        values: dict[str, Any] = json.loads(text)
        if "error" in values:
            raise NotMeasured(values["error"])
        return values

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Interval:
    """The median of `n` paired ratios with an interval that covers it with `coverage`."""

    median: float
    low: float
    high: float
    coverage: float
    n: int

    def met(self, must: float, aim: float, *, sure: bool = True) -> str:
        """Returns the highest bound that the median reaches.

        "?" says that the interval does not, that it covers too little, or `sure` is False.
        """
        sure = sure and self.coverage >= COVERAGE
        for name, bound in (("aim", aim), ("must", must)):
            if self.median >= bound:
                return name if sure and self.low >= bound else f"{name}?"
        return "no" if sure and self.high < must else "no?"


def interval(ratios: Sequence[float]) -> Interval:
    """Returns the interval between order statistics: no assumption on how ratios are spread.

    The k-th least and greatest of n miss the median with twice the chance of fewer than k heads
    in n throws; the narrowest pair that covers COVERAGE is taken, or the widest there is.
    """
    ordered, n = sorted(ratios), len(ratios)
    tails = [sum(math.comb(n, i) for i in range(k)) / 2**n for k in range(1, n // 2 + 1)]
    enough = [k for k, tail in enumerate(tails, 1) if 1 - 2 * tail >= COVERAGE]
    k = enough[-1] if enough else 1
    coverage = 1 - 2 * tails[k - 1] if tails else 0.0
    return Interval(statistics.median(ordered), ordered[k - 1], ordered[n - k], coverage, n)


def until_rest() -> None:
    """Waits until a tenth of a second has passed with little work on our cores, or REST_S."""
    end = time.monotonic() + REST_S
    while time.monotonic() < end:
        before = machine_seconds()[0]
        time.sleep(0.1)
        if machine_seconds()[0] - before <= 0.02:  # two ticks of the system's clock
            return


def in_turns(
    sides: Mapping[str, Callable[[], Sample]],
    pairs: int,
    limit: float,
    tell: Callable[[str], object],
    rest: Callable[[], object] = until_rest,
) -> tuple[dict[str, list[Sample]], dict[str, str]]:
    """Returns samples of every side, round by round, and why sides are missing.

    Each side runs once before, uncounted, and begins when the machine is at rest: some runtimes
    spin for a while after their work. A round whose samples all had less than `limit` foreign
    cores is clean; rounds go on, up to half as many more, until `pairs` are. If FEWEST are clean
    only those are returned, else all. `tell` gets a line for each sample.
    """
    left, failed = dict(sides), {}

    def round_of(names: Sequence[str]) -> dict[str, Sample]:
        found = {}
        for name in names:
            try:
                rest()
                found[name] = sample = left[name]()
                tell(f"{name}: {shown(sample.rate)}, load {sample.foreign:.2f}")
            except NotMeasured as error:
                failed[name] = str(error)
                tell(f"{name}: {error}")
                del left[name]
        return found

    round_of(list(left))
    rounds: list[dict[str, Sample]] = []
    clean: list[dict[str, Sample]] = []
    while len(clean) < pairs and len(rounds) < pairs + pairs // 2:
        # A B C, C B A: a drift falls on all alike.
        names = list(left) if len(rounds) % 2 == 0 else list(reversed(left))
        rounds.append(round_of(names))
        if max((s.foreign for s in rounds[-1].values()), default=0.0) < limit:
            clean.append(rounds[-1])
    kept = clean if len(clean) >= FEWEST else rounds
    return {name: [r[name] for r in kept if name in r] for name in left}, failed


def shown(rate: float) -> str:
    """Returns tokens a second, or thousands of millions of bytes or operations."""
    if rate >= 1e8:
        return f"{rate / 1e9:.1f} G/s"
    return f"{rate:.0f}/s" if rate >= 100 else f"{rate:.2f}/s"


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Keeps one foreign process computing meanwhile."""
    program = "while True: pass"
    with subprocess.Popen([sys.executable, "-c", program]) as neighbour:
        try:
            yield
        finally:
            neighbour.kill()
