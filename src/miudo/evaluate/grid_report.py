"""A grid of speeds for people: the table of a terminal, the page with its plots.

For: choosing and wording what `miudo bench` shows.
Not for: measuring (`miudo.evaluate.grid`) or drawing (`miudo.report`).
Read next: `miudo.evaluate.grid`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from miudo.evaluate.benched import BenchedModel
from miudo.evaluate.grid import Cell, Grid, Phase
from miudo.meter import energy_basis
from miudo.report import Line, Section, Table, html_report, line_plot

__all__ = ["bench_json", "bench_tables", "bench_text", "write_page"]

_DISTURBED = 0.15
"""Cores of other programs from which on a row is marked: figures then say little."""


def bench_json(benched: BenchedModel) -> dict[str, Any]:
    """Returns plain JSON values of all that was measured."""
    return {"schema": 1, **dataclasses.asdict(benched)}


def bench_text(benched: BenchedModel) -> str:
    """Returns what is to be known of model and machine, a line each."""
    lines = _facts(benched)
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in lines)


def bench_tables(grid: Grid) -> list[Table]:
    """Returns speeds, a row a cell, and the phases of a step where those were asked for.

    How to read a table stands in its caption.
    """
    return [_speed_table(grid), *([_phase_table(grid)] if grid.cells[0].decode.phases_s else [])]


def write_page(benched: BenchedModel, path: Path) -> None:
    """Writes the page: plots of speed under the machine's ceiling, and the table."""
    cells = benched.grid.cells
    single = [cell for cell in cells if cell.batch == 1]
    first = cells[0].context
    batches = [cell for cell in cells if cell.context == first]
    facts = Table(("", ""), _facts(benched), text_columns=frozenset({0, 1}))
    sections = [
        Section("Model and machine", table=facts),
        Section(
            "New tokens, one conversation",
            [
                "The dashed line is where reading the weights, keys and values of each token, or "
                "its arithmetic, would take all the time, at the rates measured between the runs."
            ],
            svg=_plot(single, lambda c: c.context, lambda c: c.decode, "context (tokens)"),
        ),
        Section(
            "New tokens, several conversations at once",
            [f"All conversations together, from {first:,} tokens each."],
            svg=_plot(batches, lambda c: c.batch, lambda c: c.decode, "conversations"),
        ),
        Section(
            "Prompts",
            svg=_plot(single, lambda c: c.context, lambda c: c.prompt, "prompt (tokens)"),
        ),
        *(
            Section(title, table=table)
            for title, table in zip(
                ("All figures", "Where the time goes"), bench_tables(benched.grid), strict=False
            )
        ),
    ]
    html_report(f"How fast {benched.name} runs", sections, path)


def _speed_table(grid: Grid) -> Table:
    headers = (
        "context", "batch", "prompt tok/s", "bandwidth", "arithmetic",
        "new tok/s", "bandwidth", "arithmetic", "energy / token", "",
    )  # fmt: skip
    rows = [
        (
            f"{cell.context:,}",
            f"{cell.batch}",
            *_phase_cells(cell.prompt),
            *_phase_cells(cell.decode),
            _energy(cell.decode),
            "*" if _foreign(cell) >= _DISTURBED else "",
        )
        for cell in grid.cells
    ]
    return Table(headers, rows, caption=_caption(grid), text_columns=frozenset({9}))


def _phase_table(grid: Grid) -> Table:
    """Returns where the time goes, in shares of a run, where it was asked for."""
    rows, names = [], [*grid.cells[0].decode.phases_s]
    for cell in grid.cells:
        for kind, phase in (("prompt", cell.prompt), ("new tokens", cell.decode)):
            seconds = [phase.phases_s[name] for name in names]
            shares = [f"{value / sum(seconds):.0%}" for value in seconds]
            rows.append((f"{cell.context:,}", f"{cell.batch}", kind, *shares))
    caption = (
        "Shares of one run more, by the clock of the thread that calls; waiting is for the other "
        "threads, in whatever phase."
    )
    headers = ("context", "batch", "", *names)
    return Table(headers, rows, caption=caption, text_columns=frozenset({2}))


def _plot(
    cells: Sequence[Cell],
    at: Callable[[Cell], int],
    phase: Callable[[Cell], Phase],
    x: str,
) -> str:
    places = [float(at(cell)) for cell in cells]
    phases = [phase(cell) for cell in cells]
    lines = [
        Line("measured, with its range", places, [p.tokens_per_s for p in phases],
             low=[p.lowest for p in phases], high=[p.highest for p in phases]),
        Line("what the machine allows", places, [p.ceiling_tokens_per_s for p in phases],
             dashed=True),
    ]  # fmt: skip
    return line_plot(lines, x=x, y="tokens a second", doubling=True)


def _facts(benched: BenchedModel) -> list[tuple[str, str]]:
    """Returns (name, value) of the model, and of the machine as far as the grid saw it."""
    grid, loading = benched.grid, benched.peak_load_bytes
    peaks = [peak for cell in grid.cells for peak in cell.peaks]
    most = max(loading, grid.resident_bytes or 0.0)
    smallest = min(peak.read_bytes for peak in peaks)
    lines = [
        ("model", benched.name),
        ("runs on", f"native {benched.isa}, {benched.threads} threads, "
                    f"{benched.activations} activations, {benched.cache} keys and values"),
        ("loading", f"{benched.load_s:.2f} s"),
        ("memory", f"weights {_bytes(benched.weight_bytes)}; the process {_bytes(most)} at most, "
                   f"{_bytes(loading)} while loading"),
        ("can read", f"{_giga([p.read_bytes_per_s for p in peaks])} GB/s over what a step reads "
                     f"({_bytes(smallest)} and more), "
                     f"{benched.memory.read_bytes_per_s / 1e9:,.1f} GB/s from memory"),
        ("can compute", f"{_giga([p.int8_ops_per_s for p in peaks])} Gop/s int8, "
                        f"{_giga([p.float_ops_per_s for p in peaks])} Gop/s float "
                        f"({benched.machine_isa})"),
    ]  # fmt: skip
    return lines if benched.adapter is None else [*lines, ("adapter", benched.adapter)]


def _phase_cells(phase: Phase) -> tuple[str, str, str]:
    spread = (phase.highest - phase.lowest) / 2 / phase.tokens_per_s
    return (
        f"{_rate(phase.tokens_per_s)} " + (f"±{spread:3.0%}" if phase.runs > 1 else "once"),
        f"{phase.of_bandwidth:.0%}",
        f"{phase.of_arithmetic:.0%}",
    )


def _energy(phase: Phase) -> str:
    mark = "~" if phase.energy.estimate else ""
    return f"{mark}{phase.energy_per_token_j * 1e3:,.2f} mJ"


def _foreign(cell: Cell) -> float:
    return max(phase.foreign_cores or 0.0 for phase in (cell.prompt, cell.decode))


def _caption(grid: Grid) -> str:
    lines = [
        "Medians of up to nine runs ± half their range, all conversations together. Bandwidth and "
        "arithmetic: the share of the time in which this machine could just read the bytes, or do "
        "the operations, that the step needs, at the rates measured before and after each row."
    ]
    lines.append(f"Energy: {energy_basis(grid.cells[0].decode.energy.method)}.")
    busy = [foreign for cell in grid.cells if (foreign := _foreign(cell)) >= _DISTURBED]
    if busy:
        lines.append(
            f"* Other programs kept up to {max(busy):.1f} cores busy: measure again later."
        )
    for why in dict.fromkeys(grid.left_out.values()):
        names = [name for name, reason in grid.left_out.items() if reason == why]
        lines.append(f"Left out, since {why}: {'; '.join(names)}.")
    return " ".join(lines)


def _giga(rates: Sequence[float]) -> str:
    low, high = (f"{rate / 1e9:,.0f}" for rate in (min(rates), max(rates)))
    return low if low == high else f"{low} to {high}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def _bytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
