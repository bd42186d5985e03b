"""The sums of `engine.py`: from samples to lines of a table, and whether a bound is met.

For: ratios of samples, with what a token needs of bytes and operations.
Not for: measuring (`engine_sides.py`).
Read next: `miudo.evaluate.roofline` for the counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine_pairs import NotMeasured, Sample, interval, shown
from engine_rows import OURS, Check, Row

from miudo.evaluate.roofline import step_work, stored_types
from miudo.formats import open_model

Samples = Mapping[str, Sequence[Sample]]

HEADERS = ("", "figure", "must", "aim", "measured", "interval", "met", "load")
MEMORY = {"must": (1.15, 40e6), "aim": (1.05, 20e6)}  # times the file, and bytes more


@dataclass(frozen=True)
class Line:
    """One figure. `met` is "aim", "must" or "no", with a question mark where it may be less."""

    title: str
    figure: str
    must: str
    aim: str
    measured: str = "-"
    interval: str = ""
    met: str = "-"
    load: str = ""

    def cells(self) -> tuple[str, ...]:
        """Returns it as the table has it."""
        return tuple(vars(self).values())


@dataclass
class Result:
    """What a row gave: lines of the table, all samples, and why sides are missing."""

    name: str
    title: str
    lines: list[Line]
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def line_of(row: Row, check: Check, samples: Samples, models: Path, quiet: float) -> Line:
    """Returns the check as a line; without a measured figure if a side is missing.

    Nothing is sure where other programs took `quiet` cores or more, or a peer is not here.
    """
    empty = Line(row.title, check.figure, f"{check.must:.2f}", f"{check.aim:.2f}")
    there = [name for name in check.over if samples.get(name)]
    if not samples.get(OURS) or not there:
        return empty
    best = max(there, key=lambda name: statistics.median(s.rate for s in samples[name]))
    ours, theirs = samples[OURS], samples[best]
    factor = factor_of(row, check, ours[0], theirs[0], models)
    found = interval([factor * a.rate / b.rate for a, b in zip(ours, theirs, strict=True)])
    load = max(max(a.foreign, b.foreign) for a, b in zip(ours, theirs, strict=True))
    absent = [name for name in check.over if name not in there]
    figure = f"{check.figure} ({best})" if len(check.over) > 1 else check.figure
    if absent:
        figure += f", without {', '.join(absent)}"
    return Line(
        row.title,
        figure,
        empty.must,
        empty.aim,
        f"{found.median:.2f}",
        f"{found.low:.2f} to {found.high:.2f}",
        found.met(check.must, check.aim, sure=load < quiet and not absent),
        f"{load:.2f}",
    )


def factor_of(row: Row, check: Check, ours: Sample, other: Sample, models: Path) -> float:
    """Returns what makes the two rates comparable, see `engine_rows.py`."""
    if not check.factor:
        return 1.0
    side = row.sides[OURS]
    model = open_model(models / side.model)
    types, order = stored_types(model.weights), side.order
    if check.factor == "ops":
        tokens = int(order["tokens"])
        return step_work(model.config, types, [(0, tokens)]).ops / tokens
    weights = float(step_work(model.config, types, [(0, 1)]).weight_bytes)
    if check.factor == "weights":
        return weights
    contexts = [int(row.sides[name].order["context"]) for name in (OURS, *check.over)]
    position = (ours.cache_bytes - other.cache_bytes) / (contexts[0] - contexts[1])
    far, near = (weights + position * (c + int(order["tokens"]) / 2) for c in contexts)
    return far / near


def memory_line(title: str, file_bytes: int, most_bytes: int) -> Line:
    """Returns the most memory of a process beside what the file's size allows."""
    bounds = {name: times * file_bytes + more for name, (times, more) in MEMORY.items()}
    return Line(
        title,
        f"MB above idle, file {file_bytes / 1e6:.0f}",
        f"{bounds['must'] / 1e6:.0f}",
        f"{bounds['aim'] / 1e6:.0f}",
        f"{most_bytes / 1e6:.0f}",
        met=next((name for name in ("aim", "must") if most_bytes <= bounds[name]), "no"),
    )


def speed_cells(result: Result) -> list[tuple[str, ...]]:
    """Returns a row for each side: its rate, least and greatest, and what others took."""
    return [(result.title, *cells) for cells in map(_side_cells, result.samples.items())] + [
        (result.title, name, why, "", "", "") for name, why in result.missing.items()
    ]


def _side_cells(side: tuple[str, Sequence[Sample]]) -> tuple[str, ...]:
    name, samples = side
    rates = [s.rate for s in samples]
    if not rates:
        raise NotMeasured(name)
    return (
        name,
        shown(statistics.median(rates)),
        f"{shown(min(rates))} to {shown(max(rates))}",
        f"{max(s.foreign for s in samples):.2f}",
        f"{max(s.stolen for s in samples):.2f}",
    )
