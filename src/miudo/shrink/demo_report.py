"""The demo's page: what was made, gained and lost, and how.

For: choosing and wording the sections.
Not for: drawing them (`miudo.report`) or measuring (`miudo.evaluate.compare`).
Read next: `miudo.report`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from miudo.evaluate.compare import Row, comparison_table
from miudo.formats import open_model
from miudo.records import Record
from miudo.registry.describe import lineage_lines
from miudo.report import Section, Table, html_report, loss_svg
from miudo.shrink.demo_samples import Sample
from miudo.train.metrics import read_metrics

__all__ = ["write_report"]


def write_report(
    path: Path,
    rows: Sequence[Row],
    samples: Sequence[Sample],
    *,
    runs: Mapping[str, Path],
    model: Path,
) -> None:
    """Writes the page. `rows` are teacher, student, its 8-bit file and its twin, in order.

    `runs` are folders of training runs by name; `model` is the 8-bit file.
    """
    record = open_model(model).record
    metrics = {name: read_metrics(run / "metrics.jsonl") for name, run in runs.items()}
    # What the student minimises holds its teacher's part: no loss on a text to compare with.
    metrics["student"] = [{**row, "loss": None} for row in metrics["student"]]
    sections = [
        Section("What came out", _summary(rows)),
        Section("Side by side", table=comparison_table(rows)),
        Section(
            "Learning",
            [
                "Thick lines: loss on held-out text. Thin lines: loss on the text being learned, "
                "for those that learn from the text alone."
            ],
            svg=loss_svg(metrics),
        ),
        Section(
            "What the small model writes",
            ["From the 8-bit file on the native engine, temperature 0.7, seeded."],
            samples=[(f"{s.label}: {s.prompt}", s.text.strip()) for s in samples],
        ),
    ]
    if record is not None:
        sections.append(_origin(record))
    html_report(
        "miudo demo",
        sections,
        path,
        subtitle="From text to a small model that runs. All text here is synthetic: written by "
        "a program, not by people.",
    )


def _summary(rows: Sequence[Row]) -> list[str]:
    teacher, student, small, twin = rows
    times = teacher.size_bytes / small.size_bytes
    lines = [
        f"The teacher has {teacher.parameters:,} parameters ({teacher.parameters_inside:,} besides "
        f"its token table) and takes {teacher.size_bytes / 1e6:.2f} MB on disk. The student has "
        f"{student.parameters:,} ({student.parameters_inside:,}); stored in 8 bits with its "
        f"tokenizer it is one file of {small.size_bytes / 1e6:.2f} MB, {times:.1f} times smaller.",
        f"Perplexity on held-out text: teacher {teacher.quality.ppl:.3f}, student "
        f"{student.quality.ppl:.3f}, in 8 bits {small.quality.ppl:.3f} "
        f"({small.quality.ppl / student.quality.ppl:.4f} of the student's). The student "
        f"began as the teacher with parts taken out, so it carries what the teacher had learned. A "
        f"twin of its shape that began from nothing and had the student's steps alone, without "
        f"the teacher's: {twin.quality.ppl:.3f}.",
    ]
    gained = small.bench.speed.new_tokens_per_s / teacher.bench.speed.new_tokens_per_s
    lines.append(
        f"The small file writes {small.bench.speed.new_tokens_per_s:,.0f} tokens a second, "
        f"{gained:.1f} times the teacher's speed on the same engine."
    )
    return lines


def _origin(record: Record) -> Section:
    machine = [(name, value) for name, value in record.environment.items()]
    table = Table(["made with", ""], machine, text_columns=frozenset({0, 1}))
    lineage = "\n".join(lineage_lines(record))
    return Section("How it came to be", table=table, code=lineage)
