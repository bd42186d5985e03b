"""What a file is worth on this machine: quality, distance from the teacher, tasks, speed, energy.

For: one row a file, all files in the same way.
Not for: predictions (`miudo.shrink.forecast`).
Read next: `miudo.evaluate.compare`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.evaluate.compare import CompareSettings, Row, compare_one, load_for, rows_from_json
from miudo.evaluate.harness import run_tasks
from miudo.evaluate.loading import LoadedModel
from miudo.evaluate.prepared import PreparedTask, prepare_tasks
from miudo.evaluate.tasks.catalogue import find_tasks
from miudo.evaluate.tasks.task import Source, TaskSettings
from miudo.shrink.budget import Figures

__all__ = ["Instrument", "Measured", "Score", "open_instrument"]


@dataclass(frozen=True, slots=True)
class Score:
    """A task's share of right answers and its 95% interval."""

    task: str
    value: float
    low: float
    high: float
    samples: int
    chance: float | None


@dataclass(frozen=True, slots=True)
class Measured:
    """A file's row and its task scores."""

    row: Row
    scores: tuple[Score, ...] = ()

    def figures(self, teacher: Measured) -> Figures:
        """Returns what a budget is held against. Energy counts only where a counter was read."""
        speed = self.row.bench.speed
        return Figures(
            size_bytes=self.row.size_bytes,
            tokens_per_s=speed.new_tokens_per_s,
            ppl_increase=math.expm1(self.row.quality.nll - teacher.row.quality.nll),
            energy_j=None if speed.energy_estimate else speed.energy_per_token_j,
        )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Measured:
        """Returns what `dataclasses.asdict` made `values` of."""
        (row,) = rows_from_json({"models": [values["row"]]})
        return cls(row, tuple(Score(**score) for score in values["scores"]))


@dataclass(frozen=True, slots=True)
class Instrument:
    """What all files are measured with: the teacher as reference, text, settings, tasks."""

    reference: LoadedModel
    documents: tuple[str, ...]
    settings: CompareSettings
    tasks: tuple[PreparedTask, ...]

    def measure(
        self, name: str, path: Path, progress: Callable[[str], None] = lambda line: None
    ) -> Measured:
        """Returns the figures of the model at `path`, the teacher's own path included."""
        same = path == self.reference.path
        model = self.reference if same else load_for(path, self.settings)
        row = compare_one(
            name, model, self.reference, self.documents, self.settings, progress=progress
        )
        scored = run_tasks(self.tasks, (model.engine, model.tokenizer))
        scores = [
            Score(s.task, s.score.value, s.score.low, s.score.high, s.score.samples, s.chance)
            for s, _ in scored
        ]
        return Measured(dataclasses.replace(row, path=path.name), tuple(scores))


def open_instrument(
    teacher: Path,
    documents: list[str],
    settings: CompareSettings,
    *,
    tasks: tuple[str, ...] = (),
    files: tuple[str, ...] = (),
    limit: int | None = None,
    seed: int = 0,
) -> Instrument:
    """Returns the instrument for files made of `teacher`; tasks are read and checked now.

    Raises UsageError for a task that is not there, DataError for its files.
    """
    reference = load_for(teacher, settings)
    ready: list[PreparedTask] = []
    if tasks:
        ready = prepare_tasks(
            find_tasks(tasks),
            Source(paths=tuple(Path(file) for file in files)),
            (reference.engine, reference.tokenizer),
            TaskSettings(limit=limit, seed=seed),
        )
    return Instrument(reference, tuple(documents), settings, tuple(ready))
