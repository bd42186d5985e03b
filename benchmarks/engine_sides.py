"""The processes of `engine.py`: which Python runs what, loaded once, and asked by name.

For: turning a `Side` into something that gives a sample.
Not for: what the sample means (`engine_lines.py`).
Read next: `engine_worker.py`, the other end.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from engine_once import seconds_to_token
from engine_pairs import NotMeasured, Sample, Worker, busy_neighbour
from engine_rows import AVX2, OURS, Row, Side
from engine_worker import machine_seconds

_Key = tuple[str, str, str]
HERE = Path(__file__).parent


class Runtimes:
    """Workers by runtime, model and instruction set; `versions` fills as they load.

    `pythons` maps a runtime to its interpreter, None where it is not here. `by_cpu` takes seconds
    of CPU for those of the clock.
    """

    def __init__(
        self, models: Path, pythons: dict[str, Path | None], threads: int, *, by_cpu: bool = False
    ) -> None:
        ours = Path(sys.executable)
        has_avx2 = importlib.util.find_spec("xllamacpp") is not None
        self.pythons = pythons | {OURS: ours, "machine": ours, AVX2: ours if has_avx2 else None}
        self.models, self.threads, self.by_cpu = models, threads, by_cpu
        self.versions: dict[str, str] = {}
        self.workers: dict[_Key, Worker] = {}

    def only_for(self, row: Row | None) -> None:
        """Ends the workers that `row` does not need: their memory, and what they do idle."""
        needed = {key_of(side) for side in row.sides.values()} if row else set()
        for key in set(self.workers) - needed:
            self.workers.pop(key).close()

    def side(self, side: Side) -> Callable[[], Sample]:
        """Returns what measures `side` once. It raises NotMeasured."""
        give = self._by_clock(side)
        if not self.by_cpu:
            return give
        if side.busy or side.runtime == "machine":
            return self._clock_alone

        def spent() -> Sample:
            found = give()
            return dataclasses.replace(found, seconds=found.cpu_s)

        return spent

    def _clock_alone(self) -> Sample:
        raise NotMeasured("by the clock alone")

    def _by_clock(self, side: Side) -> Callable[[], Sample]:
        if side.order["do"] == "start":
            return lambda: self._start(side)
        if not side.busy:
            return lambda: self._worker(side).ask(side.order)

        def beside() -> Sample:
            worker, used, begin = self._worker(side), children_s(), time.perf_counter()
            with busy_neighbour():
                found = worker.ask(side.order)
            # The neighbour is wanted: only what others took besides is foreign.
            neighbour = (children_s() - used) / (time.perf_counter() - begin)
            return dataclasses.replace(found, foreign=max(0.0, found.foreign - neighbour))

        return beside

    def _worker(self, side: Side) -> Worker:
        key = key_of(side)
        if key not in self.workers:
            path = self._path(side) if side.model else Path("-")
            command = [str(self._python(side.runtime)), str(HERE / "engine_worker.py")]
            environment = {"MIUDO_ISA": side.isa} if side.isa else {}
            worker = Worker([*command, side.runtime, str(path), str(self.threads)], environment)
            self.workers[key] = worker
            self.versions[" ".join((side.runtime, side.isa)).strip()] = worker.version
        return self.workers[key]

    def _start(self, side: Side) -> Sample:
        python, path = self._python(side.runtime), self._path(side)
        busy, stolen = machine_seconds()
        used = children_s()
        seconds = seconds_to_token(python, side.runtime, path, self.threads)
        busy_after, stolen_after = machine_seconds()
        foreign = max(0.0, busy_after - busy - (children_s() - used))
        stolen_s = stolen_after - stolen
        return Sample(1, seconds, children_s() - used, foreign / seconds, stolen_s / seconds)

    def _python(self, runtime: str) -> Path:
        python = self.pythons.get(runtime)
        if python is None:
            raise NotMeasured("not here")
        return python

    def _path(self, side: Side) -> Path:
        path = self.models / side.model
        if not path.exists():
            raise NotMeasured(f"no {side.model}")
        return path


def key_of(side: Side) -> _Key:
    return (side.runtime, side.model, side.isa)


def children_s() -> float:
    """CPU seconds of processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
