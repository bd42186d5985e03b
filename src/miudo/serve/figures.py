"""What the server measures of itself, in the text form that Prometheus reads.

For: `/metrics`. The form is a page of rules, and prometheus-client brings a registry of the whole
process for it, which several servers in one process would share: so it is written here.
Not for: one request's figures (`miudo.serve.errand`).
Read next: `miudo.serve.operating`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Family", "Histogram", "Latencies", "exposition"]

_FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_WHOLE_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

_Labels = Mapping[str, str]
"""Names and values; values may hold anything."""


class Histogram:
    """Counts seconds by upper bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Counts one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


@dataclass
class Latencies:
    """How long answers of one model took, and how they ended."""

    first_token: Histogram = field(default_factory=lambda: Histogram(_FIRST_S))
    between_tokens: Histogram = field(default_factory=lambda: Histogram(_BETWEEN_S))
    whole: Histogram = field(default_factory=lambda: Histogram(_WHOLE_S))
    ends: Counter[str] = field(default_factory=Counter)


class Family:
    """All samples of one name; `kind` is counter, gauge or histogram."""

    def __init__(self, name: str, kind: str, text: str) -> None:
        self._name = name
        self.lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]

    def add(self, value: float, labels: _Labels | None = None) -> None:
        """Adds a sample."""
        self._line("", value, labels or {})

    def add_histogram(self, histogram: Histogram, labels: _Labels) -> None:
        """Adds a histogram's buckets, sum and count."""
        below = 0
        for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
            below += count
            edge = "+Inf" if bound is None else repr(bound)
            self._line("_bucket", below, {**labels, "le": edge})
        self._line("_sum", histogram.total, labels)
        self._line("_count", below, labels)

    def _line(self, suffix: str, value: float, labels: _Labels) -> None:
        inner = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
        shown = repr(value) if isinstance(value, float) else str(value)
        self.lines.append(f"{self._name}{suffix}{'{' + inner + '}' if inner else ''} {shown}")


def exposition(families: Iterable[Family]) -> bytes:
    """Returns the families as Prometheus's text format 0.0.4."""
    return "".join(line + "\n" for family in families for line in family.lines).encode()


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
