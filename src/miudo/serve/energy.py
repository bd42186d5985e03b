"""What each request's part of the shared steps cost in energy.

For: the `energy` of a reply and the totals of `/metrics`, with how they were obtained.
Not for: budgets: without a counter it is an estimate from CPU time, and says so.
Read next: `miudo.meter`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from miudo.meter import DEFAULT_WATTS, Energy, energy_between, read_counters

__all__ = ["EnergyBook"]

_SHARED = ", shared by ids taken in"


class EnergyBook:
    """Splits the energy of steps among requests; used by one thread.

    A counter counts the whole machine, and CPU time the whole process: what else they do while a
    step runs is counted with it.
    """

    def __init__(self) -> None:
        self.energy_j = self.cpu_s = 0.0
        self._counted = bool(read_counters())
        self._method = ""
        self._parts: dict[int, list[float]] = {}  # request: joules, CPU seconds
        self.begin()

    @property
    def measured(self) -> bool:
        """Whether a counter is read."""
        return self._counted

    def begin(self) -> None:
        """A step begins."""
        self._before = read_counters() if self._counted else {}
        self._cpu = time.process_time()

    def end(self, takes: Sequence[tuple[int, int]]) -> None:
        """The step ended that took in so many ids of each request."""
        cpu = time.process_time() - self._cpu
        energy_j = cpu * DEFAULT_WATTS
        if self._counted:
            spent = energy_between(self._before, read_counters(), cpu_s=cpu, watts=DEFAULT_WATTS)
            self._method, energy_j = spent.method, spent.energy_j
        self.energy_j += energy_j
        self.cpu_s += cpu
        total = sum(n for _, n in takes)
        for number, n in takes:
            part = self._parts.setdefault(number, [0.0, 0.0])
            part[0] += energy_j * n / total
            part[1] += cpu * n / total

    def of(self, number: int) -> Energy:
        """Returns what a request's part was so far."""
        joules, cpu = self._parts.get(number, (0.0, 0.0))
        if self._counted:
            return Energy(joules, self._method + _SHARED, estimate=False)
        estimate = energy_between({}, {}, cpu_s=cpu, watts=DEFAULT_WATTS)
        return Energy(joules, estimate.method + _SHARED, estimate=True)

    def forget(self, number: int) -> None:
        """A request is over."""
        self._parts.pop(number, None)
