"""The report of a search: one page, one JSON file, one table for a spreadsheet.

For: every candidate and control with what it took and gave, and how far predictions held.
Not for: measuring (`miudo.shrink.measure`) or drawing (`miudo.report`).
Read next: `miudo.shrink.tables`, `miudo.report`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from typing import Any

from miudo.files import atomic_write
from miudo.formats import open_model
from miudo.meter import energy_basis
from miudo.plain_json import write_json
from miudo.registry.describe import lineage_lines
from miudo.report import Point, Section, html_report, scatter_plot
from miudo.shrink.candidates import absent
from miudo.shrink.result import ShrinkResult
from miudo.shrink.tables import (
    agreement,
    agreement_table,
    budget_table,
    columns,
    orders_table,
    predictions_table,
    rows_table,
    seeds_table,
)

__all__ = ["write_report"]


def write_report(result: ShrinkResult) -> None:
    """Writes OUT/report.json, OUT/report.csv and OUT/report.html, the page last."""
    write_json(result.out / "report.json", _plain(result))
    listed = [columns(result, row) for row in result.rows]
    out = io.StringIO()
    # Newlines as everywhere else in OUT, not the CRLF of RFC 4180: readers take both.
    writer = csv.DictWriter(out, list(listed[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    text = out.getvalue().encode()
    atomic_write(result.out / "report.csv", lambda file: file.write(text))
    html_report(
        "miudo shrink",
        _sections(result),
        result.out / "report.html",
        subtitle=f"{result.job.teacher.name}: {result.job.budget.describe()}.",
    )


def _plain(result: ShrinkResult) -> dict[str, Any]:
    outcome = result.outcome
    return {
        "schema": 1,
        "met": not outcome.shortfalls,
        "chosen": outcome.chosen,
        "shortfalls": [dataclasses.asdict(short) for short in outcome.shortfalls],
        "front": list(outcome.front),
        "budget": dataclasses.asdict(result.job.budget),
        "settings": dataclasses.asdict(result.job.settings),
        "rows": [columns(result, row) for row in result.rows],
        "predicted": [
            {
                **{k: v for k, v in guess.items() if k != "candidate"},
                "name": guess["candidate"]["name"],
                "order": guess["candidate"]["order"],
            }
            for guess in result.forecast.to_json()["guesses"]
        ],
        "rounds": [dataclasses.asdict(r) for r in result.forecast.rounds],
        "scored": [
            {
                "name": s.candidate.name,
                "order": s.candidate.order.value,
                "round": s.round,
                "steps": s.steps,
                "loss": s.loss,
                "size_bytes": s.size_bytes,
            }
            for s in result.scored
        ],
        "agreement": agreement(result),
        "checks": result.checks,
        "warnings": list(result.baseline.warnings),
        "notes": list(result.notes),
        "absent_methods": absent(),
        "seconds": result.seconds,
        "baseline": dataclasses.asdict(result.baseline),
    }


def _sections(result: ShrinkResult) -> list[Section]:
    page = [
        Section("What came out", _summary(result), table=budget_table(result)),
        Section(
            "Size and quality",
            [
                "Every mark is a file that was measured on the engine. The line is the Pareto "
                "front in size and perplexity among candidates; the ring is the chosen one."
            ],
            svg=_front(result),
        ),
        Section("Candidates", table=rows_table(result, "candidate")),
        Section(
            "Controls",
            [
                "The same cost spent more simply: without these a small loss proves nothing.",
                *result.notes,
            ],
            table=rows_table(result, "control"),
        ),
    ]
    if result.job.settings.seeds > 1:
        page.append(Section("Over seeds", table=seeds_table(result)))
    else:
        note = (
            "One seed was trained: the ± in the tables is the text's, not the training's. "
            "--seeds 3 trains the chosen one and its controls three times."
        )
        page[-1] = dataclasses.replace(page[-1], paragraphs=[*page[-1].paragraphs, note])
    page += [
        Section("Orders", ["The best of every order of steps that was tried."],
                table=orders_table(result)),
        Section(
            "Predicted and measured",
            ["Rank correlation (Spearman) of what chose with what was found."],
            table=agreement_table(result),
            svg=_predicted(result),
        ),
        Section("All candidates that were proposed", table=predictions_table(result)),
        Section("Checks that this run made of itself", _checks(result)),
        Section("How it was measured", _how(result)),
    ]  # fmt: skip
    model = result.out / "model.gguf"
    record = open_model(model).record if model.exists() else None
    if record is not None:
        page.append(Section("How it came to be", code="\n".join(lineage_lines(record))))
    return page


def _summary(result: ShrinkResult) -> list[str]:
    chosen, teacher = result.chosen, result.baseline.teacher.row
    found = result.figures(chosen)
    row = chosen.measured.row
    lines = [
        f"{chosen.name} takes {row.size_bytes / 1e6:,.2f} MB, "
        f"{teacher.size_bytes / row.size_bytes:.1f} times less than the teacher's "
        f"{teacher.size_bytes / 1e6:,.2f} MB, and writes "
        f"{found.tokens_per_s:,.0f} tokens a second (the teacher "
        f"{teacher.bench.speed.new_tokens_per_s:,.0f}). Its perplexity on held-out text that "
        f"chose nothing is {row.quality.ppl:.3f}, the teacher's {teacher.quality.ppl:.3f}: "
        f"{found.ppl_increase:+.2%}."
    ]
    lines += _beaten(result)
    if result.outcome.shortfalls:
        lines.insert(0, f"The budget is not met: {result.unmet()}. {result.would_meet()}.")
    lines += [f"Warning: {text}." for text in result.baseline.warnings]
    return lines


def _beaten(result: ShrinkResult) -> list[str]:
    """Says which controls did better than the chosen one: then the dearer way was not worth it."""
    quality = result.chosen.measured.row.quality
    better = [
        f"{row.name} ({row.measured.row.quality.ppl:.3f})"
        for row in result.rows
        if row.kind not in ("teacher", "candidate", "chosen again")
        and row.measured.row.quality.ppl < quality.ppl
    ]
    if not better:
        return []
    return [
        f"Controls of lower perplexity than the chosen one's {quality.ppl:.3f}: "
        f"{', '.join(better)}. One standard error over tokens is {quality.ppl_error:.3f}. Where "
        "text alone does better, the teacher knows less than the text: a lower alpha, or a better "
        "teacher, would help."
    ]


def _front(result: ShrinkResult) -> str:
    points = []
    for row in result.rows:
        group = row.order or ("teacher" if row.kind == "teacher" else "control")
        points.append(
            Point(
                row.measured.row.size_bytes / 1e6,
                row.measured.row.quality.ppl,
                group,
                label="" if row.kind == "candidate" else row.name,
                ring=row.name == result.outcome.chosen,
            )
        )
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p.x, p.y)):
        is_candidate = point.group not in ("teacher", "control")
        if is_candidate and (not best or point.y < best[-1][1]):
            best.append((point.x, point.y))
    return scatter_plot(points, x="size (MB)", y="perplexity", joined=best)


def _predicted(result: ShrinkResult) -> str:
    guesses = {g.candidate.name: g for g in result.forecast.guesses}
    points = [
        Point(guesses[row.name].loss, row.measured.row.quality.nll, row.order)
        for row in result.rows
        if row.name in guesses
    ]
    return scatter_plot(
        points, x="predicted: loss right after cutting (nats)", y="measured loss (nats)"
    )


def _checks(result: ShrinkResult) -> list[str]:
    return [f"✓ {name} ({times} times)" for name, times in sorted(result.checks.items())]


def _how(result: ShrinkResult) -> list[str]:
    row, baseline = result.chosen.measured.row, result.baseline
    quality, bench = row.quality, row.bench
    seconds = "; ".join(f"{name} {value:,.0f} s" for name, value in result.seconds.items())
    rounds = ", ".join(f"{r.candidates} trunks for {r.steps} steps" for r in result.forecast.rounds)
    lines = [
        f"Perplexity: context {quality.context}, stride {quality.stride}, {quality.tokens:,} "
        f"tokens of held-out text; ± one standard error over tokens. Losses that chose "
        f"were taken on other held-out text. KL and same top-1 are against the teacher, "
        f"on the same engine.",
        f"Speed: median of {bench.speed.repeats} runs of {bench.speed.prompt_tokens} prompt and "
        f"{bench.speed.new_tokens} new tokens, {bench.runs_on}, {bench.threads} threads. Memory: "
        f"{bench.peak_memory_method}. Energy: {energy_basis(bench.speed.energy_method)}.",
        f"Predicted speed: the time in which a token's bytes can be read "
        f"({baseline.read_bytes_per_s / 1e9:.1f} GB/s here) or its products done, times "
        f"{baseline.slowness:.2f}, the factor of the rounded teacher. Predicted loss: right after "
        f"cutting, plus what the rounding added to the teacher's loss.",
        f"Rounds planned: {rounds or 'none, nothing learns'}. Every round trains anew.",
        f"Time: {seconds}.",
    ]
    if missing := absent():
        lines.append(f"Methods that this build has not, and that were not tried: "
                     f"{', '.join(missing)}.")  # fmt: skip
    return lines
