"""The process beside `engine.py` in which one runtime holds one model and answers orders.

For: any Python that has a runtime, miudo or not; it needs the standard library and NumPy.
Not for: starting by hand. One line of JSON comes in, one goes out:

    {"do": "decode", "context": 16, "tokens": 64, "sequences": 1}   greedy, choosing included
    {"do": "prompt", "tokens": 512}
    {"do": "read"}, {"do": "multiply"}                              what the machine can do
    -> {"amount": 64, "seconds": 1.2, "cpu_s": 2.4, "foreign": 0.02, "stolen": 0.0}

`amount` is tokens, bytes or operations. `foreign` counts the cores that other processes took
meanwhile, `stolen` those that the machine's host did.
Read next: `engine_runtimes.py`.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEAST_S = 0.4  # /proc/stat counts in hundredths of a second
MOST_RUNS = 64


@dataclass
class Timed:
    """Seconds by the clock, of our CPU, and of CPU that others had on the cores we may use."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    foreign_s: float = 0.0
    stolen_s: float = 0.0

    def add(self, other: Timed) -> None:
        """Takes in another span."""
        self.seconds += other.seconds
        self.cpu_s += other.cpu_s
        self.foreign_s += other.foreign_s
        self.stolen_s += other.stolen_s


def timed(work: Callable[[], object]) -> Timed:
    """Runs `work` and returns what passed meanwhile."""
    busy, stolen = machine_seconds()
    own, start = time.process_time(), time.perf_counter()
    work()
    seconds, own = time.perf_counter() - start, time.process_time() - own
    busy_after, stolen_after = machine_seconds()
    # Below 0 at times, as the system counts in hundredths; sums are right.
    return Timed(seconds, own, busy_after - busy - own, stolen_after - stolen)


def machine_seconds() -> tuple[float, float]:
    """Returns seconds that the cores of this process were busy, and were taken by the host."""
    try:
        mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except (OSError, AttributeError):
        return 0.0, 0.0
    ticks = [[int(value) for value in line[1:9]] for line in lines if line[0] in mine]
    hz = os.sysconf("SC_CLK_TCK")
    # user, nice, system, idle, waiting, interrupts, soft interrupts, stolen
    busy = sum(sum(t[:3]) + sum(t[5:7]) for t in ticks)
    return busy / hz, sum(t[7] for t in ticks) / hz


def answer(runtime: Any, order: dict[str, Any]) -> dict[str, float]:
    """Runs one order, again until it has taken LEAST_S, and returns the sums."""
    do, total, amount, runs = order.pop("do"), Timed(), 0.0, 0
    while total.seconds < LEAST_S and runs < MOST_RUNS:
        done, span = getattr(runtime, do)(**order)
        total.add(span)
        amount += done
        runs += 1
    return {
        "amount": amount,
        "seconds": total.seconds,
        "cpu_s": total.cpu_s,
        "foreign": max(0.0, total.foreign_s / total.seconds),
        "stolen": total.stolen_s / total.seconds,
        **getattr(runtime, "facts", {}),
    }


def main() -> None:
    """Loads, says what was loaded, and answers until there are no more orders."""
    # Libraries print: what they write goes to stderr, the answers to the pipe alone.
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    try:
        from engine_runtimes import RUNTIMES

        start = time.perf_counter()
        runtime = RUNTIMES[name](path, threads)
        loaded = {"version": runtime.version, "load_s": time.perf_counter() - start}
    except BaseException as error:
        pipe.write(json.dumps({"error": said(error)}) + "\n")
        raise
    pipe.write(json.dumps(loaded) + "\n")
    for line in sys.stdin:
        try:
            reply: dict[str, Any] = answer(runtime, json.loads(line))
        except Exception as error:  # noqa: BLE001 - any runtime's; the table says which
            traceback.print_exc()
            reply = {"error": said(error)}
        pipe.write(json.dumps(reply) + "\n")
    # Some runtimes crash when Python takes them down in its own order.
    os._exit(0)


def said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


if __name__ == "__main__":
    main()
