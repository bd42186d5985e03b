"""What this machine can do at best, measured in the moment: reading, and products.

For: the floor under a model's speed. Rates drift with what else a machine does, so they are
taken in the same run as what is held against them.
Not for: the speed of a model (`miudo.evaluate.bench`), or what a model's step needs
(`miudo.evaluate.roofline`).
Read next: `native/probe/probe.h`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from miudo.engine.native_door import call, load_native

__all__ = ["Peaks", "beyond_cache_bytes", "measure_peaks", "probe_isa"]

_READ, _INT8, _FLOAT = 0, 1, 2
_SECONDS = 0.02
_SMALLEST = 1 << 16
_CACHE = 32 << 20  # where the system does not tell the size of its last cache


@dataclass(frozen=True, slots=True)
class Peaks:
    """Rates of all threads together: bytes a second, and operations a second.

    A product and the sum it goes into are two operations. `read_bytes` says over how much was
    read, again and again.
    """

    read_bytes: int
    read_bytes_per_s: float
    int8_ops_per_s: float
    float_ops_per_s: float


def measure_peaks(threads: int, read_bytes: int, *, repeats: int = 3) -> Peaks:
    """Returns medians over `repeats` short runs of each, on the best instructions there are.

    Reading goes over `read_bytes`, but never over more than `beyond_cache_bytes()`: from there
    on all comes from memory. Takes some 60 ms a repeat. Raises MissingError without the compiled
    module, ResourceError where memory is too small.
    """
    native = load_native()
    size = min(max(read_bytes, _SMALLEST), beyond_cache_bytes())

    def rate(kind: int, size: int) -> float:
        rates: list[float] = call(native.probe, kind, None, threads, size, _SECONDS, repeats)
        return sorted(rates)[repeats // 2]

    return Peaks(size, rate(_READ, size), rate(_INT8, 0), rate(_FLOAT, 0))


def probe_isa() -> str:
    """Returns the name of the instructions that `measure_peaks` uses."""
    return str(load_native().probe_isas()[0])


def beyond_cache_bytes() -> int:
    """Returns a size of which no cache holds a part worth counting: eight times the last one."""
    try:
        last = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (ValueError, OSError):  # not every system has the name
        last = 0
    return 8 * max(last, _CACHE)
