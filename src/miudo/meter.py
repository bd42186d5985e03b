"""Time, memory and energy of a piece of work, each number with how it was obtained.

For: the measurements in records, tables and reports.
Not for: budgets on energy: without a counter it is an estimate, and an estimate constrains
nothing.
Read next: `miudo.records.Measurement`, `miudo.evaluate.bench`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from miudo.records import Measurement

__all__ = [
    "DEFAULT_WATTS",
    "Energy",
    "Meter",
    "busy_s",
    "energy_basis",
    "energy_between",
    "give_back",
    "peak_memory",
    "read_counters",
    "resident_bytes",
]

DEFAULT_WATTS = 8.0
"""Assumed draw of one busy hardware thread: a 200 W server processor with 24 of them."""

_POWERCAP = Path("/sys/class/powercap")
_STATUS = Path("/proc/self/status")
_STAT = Path("/proc/stat")
_TOLD_S = 0.2
_M_MMAP_THRESHOLD, _LARGE = -3, 4 << 20
"""malloc.h's number for it, and bytes from which memory is given back as soon as it is freed."""


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules and their basis; `estimate` says that no counter was read."""

    energy_j: float
    method: str
    estimate: bool


class Meter:
    """Measures a `with` block: wall time, CPU time, peak memory, energy, and who else computed.

    `watts` is the draw of a busy hardware thread, used only where no counter is readable.
    After the block `elapsed_s`, `cpu_s`, `energy` and `measurements()` hold the results, and
    `foreign_cores` how many cores other programs kept busy on average: None where the system
    does not say, or the block was too short for its hundredths of a second.
    """

    def __init__(self, *, watts: float = DEFAULT_WATTS, powercap: Path = _POWERCAP) -> None:
        self.elapsed_s = 0.0
        self.cpu_s = 0.0
        self.foreign_cores: float | None = None
        self.energy = Energy(0.0, "nothing measured yet", estimate=True)
        self._watts = watts
        self._powercap = powercap

    def __enter__(self) -> Self:
        self._counters = read_counters(self._powercap)
        self._busy = busy_s()
        self._cpu = time.process_time()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.elapsed_s = time.perf_counter() - self._start
        self.cpu_s = time.process_time() - self._cpu
        busy, after = busy_s(), read_counters(self._powercap)
        if self._busy is not None and busy is not None and self.elapsed_s >= _TOLD_S:
            foreign = busy - self._busy - self.cpu_s
            self.foreign_cores = max(0.0, foreign) / self.elapsed_s
        self.energy = energy_between(self._counters, after, cpu_s=self.cpu_s, watts=self._watts)

    def measurements(self) -> tuple[Measurement, ...]:
        """Returns time (s), peak memory (bytes) and energy (J), as a record keeps them."""
        energy = self.energy
        return (
            Measurement("elapsed", self.elapsed_s, "s", "monotonic clock"),
            Measurement("cpu_time", self.cpu_s, "s", "CPU time of all threads of the process"),
            peak_memory(),
            Measurement("energy", energy.energy_j, "J", energy.method, estimate=energy.estimate),
        )


def energy_basis(method: str) -> str:
    """Returns an energy's method without the CPU seconds of one block, for many blocks."""
    return f"estimate from CPU time{method[method.index(' x ') :]}" if " x " in method else method


def peak_memory() -> Measurement:
    """Returns the largest resident size of this process so far, in bytes.

    Linux's VmHWM belongs to the program; `ru_maxrss` survives exec, so that a small child of a
    big parent would report the parent's peak. It is the way out on other systems.
    """
    size = _status_bytes("VmHWM:")
    if size is not None:
        return Measurement("peak_memory", size, "B", "VmHWM of the process")
    unit = 1 if sys.platform == "darwin" else 1024
    size = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return Measurement("peak_memory", size, "B", "ru_maxrss of the process")


def resident_bytes() -> float | None:
    """Returns what this process holds in memory now; None where the system does not say."""
    return _status_bytes("VmRSS:")


def busy_s() -> float | None:
    """Returns the seconds that all cores together have been busy since the machine started.

    With those that a host took for others. None where there is no /proc/stat.
    """
    try:
        fields = _STAT.read_text(encoding="ascii").split(maxsplit=9)[1:9]
        user, nice, system, _, _, irq, softirq, stolen = map(int, fields)
        ticks = user + nice + system + irq + softirq + stolen
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


def _status_bytes(name: str) -> float | None:
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        return 1024.0 * int(next(line.split()[1] for line in lines if line.startswith(name)))
    except (OSError, StopIteration, IndexError, ValueError):
        return None


_Counters = Mapping[str, tuple[int, int]]
"""Domain folder to (microjoules now, microjoules at which the counter starts again)."""


def read_counters(root: Path = _POWERCAP) -> _Counters:
    """Returns every readable package counter under `root`; empty where there is none.

    Only whole packages (`intel-rapl:0`; AMD uses the same name): parts such as cores
    (`intel-rapl:0:0`) are already in them.
    """
    found: dict[str, tuple[int, int]] = {}
    for folder in sorted(root.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:
            continue
        try:
            now = int((folder / "energy_uj").read_text(encoding="ascii"))
            span = int((folder / "max_energy_range_uj").read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue  # readable by root alone on most machines: then there is no counter
        found[folder.name] = (now, span)
    return found


def energy_between(before: _Counters, after: _Counters, *, cpu_s: float, watts: float) -> Energy:
    """Returns the energy between two readings, or CPU seconds times `watts` without any.

    A counter counts the whole machine, neighbours included; its method says so.
    """
    shared = sorted(set(before) & set(after))
    if not shared:
        method = f"estimate: {cpu_s:.3g} CPU s x {watts:g} W assumed for a busy hardware thread"
        return Energy(cpu_s * watts, method, estimate=True)
    total = 0
    for name in shared:
        (start, span), (end, _) = before[name], after[name]
        total += end - start if end >= start else end - start + span
    return Energy(total * 1e-6, f"counter: powercap {', '.join(shared)}, whole machine", False)


def give_back() -> None:
    """Gives memory that is free inside this process back to the system, where glibc can.

    What is freed among what is kept stays the process's own otherwise: hundreds of megabytes
    where large tensors of many sizes come and go. From the first call on, those go at once.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.malloc_trim(0)
