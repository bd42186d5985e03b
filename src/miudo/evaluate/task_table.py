"""Scores of tasks as a table for people.

For: a row a task, and under it what must not stay unsaid.
Not for: the numbers (`miudo.evaluate.harness`).
Read next: `miudo.report`.
"""

from __future__ import annotations

from collections.abc import Sequence

from miudo.evaluate.accuracy import Accuracy
from miudo.evaluate.harness import TaskScore
from miudo.evaluate.overlap import Overlap
from miudo.report import Table

__all__ = ["task_notes", "task_table"]

_HEADERS = (
    "task", "metric", "score", "95% interval", "chance", "acc", "samples", "shots", "ties", "cut",
    "overlap", "seconds",
)  # fmt: skip


def task_table(scores: Sequence[TaskScore]) -> Table:
    """Returns a row a task; a task of pairs has one for each group and their mean as well."""
    rows: list[tuple[str, ...]] = []
    for score in scores:
        chance = "n/a" if score.chance is None else f"{score.chance:.1%}"
        rows.append(
            (
                score.task,
                score.metric,
                *_share(score.score),
                chance,
                f"{score.acc.value:.1%}",
                f"{score.score.samples:,}",
                str(score.shots),
                f"{score.ties:,}",
                f"{score.cut:,}",
                _overlap(score.overlap),
                f"{score.seconds:.1f}",
            )
        )
        if score.metric == "acc" and score.mean_of_groups is not None:
            mean, rest = f"{score.mean_of_groups:.1%}", [""] * 6
            name = f"  mean of {len(score.groups)}"
            rows.append((name, "acc", mean, "", chance, mean, *rest))
            rows += [
                (f"  {name}", "acc", *_share(group), chance, f"{group.value:.1%}",
                 f"{group.samples:,}", *rest[1:])
                for name, group in score.groups.items()
            ]  # fmt: skip
    return Table(_HEADERS, rows, text_columns=frozenset({0, 1}))


def task_notes(scores: Sequence[TaskScore]) -> list[str]:
    """Returns what a row cannot hold: what was skipped, cut or too short, and perplexities."""
    notes = []
    for score in scores:
        if score.perplexity is not None:
            notes.append(f"{score.task}: perplexity of the last word {score.perplexity:.2f}")
        notes += [f"{score.task}: {n:,} left out ({why})" for why, n in score.skipped.items()]
        if score.cut:
            notes.append(
                f"{score.task}: {score.cut:,} prompts were longer than the model's positions and "
                "lost their beginning"
            )
        if score.overlap is not None and score.overlap.unchecked:
            notes.append(
                f"{score.task}: {score.overlap.unchecked:,} samples of fewer than 8 words were not "
                "looked for in the training text"
            )
    return notes


def _share(value: Accuracy) -> tuple[str, str]:
    return f"{value.value:.1%}", f"{value.low:.1%} to {value.high:.1%}"


def _overlap(found: Overlap | None) -> str:
    if found is None:
        return "n/a"
    return f"{found.share:.1%}" if found.checked else "unchecked"
