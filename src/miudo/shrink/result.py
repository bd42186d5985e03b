"""What a search found: rows, the chosen one, what the budget lacks and what would meet it.

For: plain data between the search and its report.
Not for: drawing it (`miudo.shrink.report`).
Read next: `miudo.shrink.report`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from miudo.errors import CheckFailedError
from miudo.records import Record
from miudo.shrink.budget import Budget, Figures, Prefer, Shortfall, enough_for, pareto_front
from miudo.shrink.forecast import Forecast
from miudo.shrink.ground import Baseline
from miudo.shrink.jobs import ShrinkJob, ShrinkSettings
from miudo.shrink.making import Trunk
from miudo.shrink.measure import Measured
from miudo.shrink.scoring import Scored

__all__ = ["Outcome", "Row", "ShrinkResult", "file_rows", "outcome_of"]

_AS_FAST = 0.9
"""Of the greatest speed: files that cost a token the same differ by several per cent, measured."""


@dataclass(frozen=True, slots=True)
class Row:
    """One file that was measured. `kind` is teacher, candidate, or what control it is.

    `tokens` were learned from, in `steps`, over `seconds`; the teacher's are its record's.
    """

    name: str
    kind: str
    order: str
    seed: int | None
    steps: int
    tokens: int
    seconds: float
    measured: Measured
    notes: tuple[str, ...] = ()

    @classmethod
    def teacher(cls, name: str, measured: Measured) -> Self:
        """Returns a row of the teacher."""
        return cls(name, "teacher", "", None, 0, 0, 0.0, measured)

    @classmethod
    def candidate(cls, scored: Scored, trunk: Trunk, measured: Measured) -> Self:
        """Returns a candidate's row."""
        name, order = scored.candidate.name, scored.candidate.order.value
        return cls(
            name,
            "candidate",
            order,
            None,
            scored.steps,
            scored.tokens,
            scored.seconds,
            measured,
            trunk.notes,
        )

    @classmethod
    def control(
        cls,
        kind: str,
        seed: int,
        scored: Scored,
        tokens: int,
        seconds: float,
        measured: Measured,
    ) -> Self:
        """Returns a control's row."""
        name, steps = f"{kind} (seed {seed})", scored.steps if tokens else 0
        return cls(name, kind, "", seed, steps, tokens, seconds, measured)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_json` gives back an equal row."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the row that `to_json` wrote."""
        given = {**values, "measured": Measured.from_json(values["measured"])}
        return cls(**{**given, "notes": tuple(values["notes"])})


@dataclass(frozen=True, slots=True)
class Outcome:
    """The chosen candidate's name, the front's, and the limits that the chosen one breaks."""

    chosen: str
    front: tuple[str, ...]
    shortfalls: tuple[Shortfall, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {"schema": 1, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the outcome that `to_json` wrote."""
        shortfalls = tuple(Shortfall(**short) for short in values["shortfalls"])
        return cls(values["chosen"], tuple(values["front"]), shortfalls)


@dataclass(frozen=True, slots=True)
class ShrinkResult:
    """Everything the report shows. `checks` counts self-checks by name."""

    out: Path
    job: ShrinkJob
    baseline: Baseline
    forecast: Forecast
    scored: list[Scored]
    rows: list[Row]
    notes: tuple[str, ...]
    checks: dict[str, int]
    outcome: Outcome
    seconds: dict[str, float]
    teacher: Record | None
    unique_tokens: int

    @property
    def chosen(self) -> Row:
        """The chosen candidate's row."""
        return next(row for row in self.rows if row.name == self.outcome.chosen)

    def figures(self, row: Row) -> Figures:
        """Returns a row's figures beside the teacher's."""
        return row.measured.figures(self.baseline.teacher)

    def to_json(self) -> dict[str, Any]:
        """Returns the outcome as plain JSON values; OUT/report.json has all of it."""
        row = self.chosen.measured.row
        return {
            "schema": 1,
            "model": str(self.out / "model.gguf"),
            "report": str(self.out / "report.html"),
            "chosen": self.outcome.chosen,
            "front": list(self.outcome.front),
            **dataclasses.asdict(self.figures(self.chosen)),
            "perplexity": row.quality.ppl,
            "checks": self.checks,
            "seconds": self.seconds,
        }

    def text(self) -> str:
        """Returns the outcome for a terminal."""
        found, row = self.figures(self.chosen), self.chosen.measured.row
        teacher = self.baseline.teacher.row
        return "\n".join(
            [
                f"model       {self.out / 'model.gguf'}",
                f"report      {self.out / 'report.html'}",
                f"chosen      {self.outcome.chosen}",
                f"size        {row.size_bytes / 1e6:,.2f} MB, the teacher "
                f"{teacher.size_bytes / 1e6:,.2f} MB",
                f"perplexity  {row.quality.ppl:.3f}, the teacher {teacher.quality.ppl:.3f} "
                f"({found.ppl_increase:+.2%})",
                f"speed       {found.tokens_per_s:,.0f} new tokens/s, the teacher "
                f"{teacher.bench.speed.new_tokens_per_s:,.0f}",
                f"checks      {sum(self.checks.values())} passed, of {len(self.checks)} kinds",
                f"measured    {len(self.rows)} files, {len(self.outcome.front)} on the front",
            ]
        )

    def unmet(self) -> str:
        """Returns by how much the nearest candidate misses the budget."""
        missed = "; ".join(short.text for short in self.outcome.shortfalls)
        return f"no candidate meets the budget; the nearest, {self.outcome.chosen}, has {missed}"

    def would_meet(self) -> str:
        """Returns the flags with which the nearest candidate would do, as measured."""
        found = self.figures(self.chosen)
        flags = {
            "--max-size": enough_for(found.size_bytes),
            "--min-speed": f"{found.tokens_per_s * 0.99:.1f}",
            "--max-ppl-increase": f"{found.ppl_increase * 100 + 0.01:.2f}%",
            "--energy": f"{found.energy_j or 0.0:.3g}",
        }
        wanted = " ".join(f"{s.limit} {flags[s.limit]}" for s in self.outcome.shortfalls)
        return f"It would do with {wanted}; more --minutes may help too"


def outcome_of(rows: Sequence[Row], job: ShrinkJob, teacher: Measured) -> Outcome:
    """Returns which of the candidates' `rows` is chosen. Raises CheckFailedError for none.

    Where speed decides, files nearly as fast as the fastest count as fast: the best of them is.
    """
    if not rows:
        raise CheckFailedError("no candidate was measured", remedy="Give more --minutes")

    def figures(row: Row) -> Figures:
        return row.measured.figures(teacher)

    def rank(row: Row) -> tuple[float, float]:
        return job.budget.rank(figures(row), job.settings.prefer)

    best = min(rows, key=rank)
    if job.settings.prefer is Prefer.SPEED:
        enough = _AS_FAST * figures(best).tokens_per_s
        fast = [
            r for r in rows if rank(r)[0] == rank(best)[0] and figures(r).tokens_per_s >= enough
        ]
        best = min(fast, key=lambda row: figures(row).ppl_increase)
    front = tuple(row.name for row in pareto_front(rows, figures))
    return Outcome(best.name, front, job.budget.shortfalls(figures(best)))


def file_rows(
    scored: Sequence[Scored], budget: Budget, settings: ShrinkSettings, teacher_loss: float
) -> list[Scored]:
    """Returns which candidates become files, of each its last score, best first.

    The best of every trunk that learned to the last round, the best that learned nothing, then
    the front by size, predicted speed and loss, then the rest.
    """

    def figures(one: Scored) -> Figures:
        return one.figures(teacher_loss)

    def key(one: Scored) -> tuple[float, float]:
        return budget.rank(figures(one), settings.prefer)

    newest = list({one.candidate.name: one for one in scored}.values())
    last = max((one.round for one in newest), default=0)
    finalists = sorted((one for one in newest if one.round in (0, last)), key=key)
    firsts: dict[str, Scored] = {}
    for one in finalists:
        firsts.setdefault("free" if one.round == 0 else one.candidate.group, one)
    front = sorted(pareto_front(finalists, figures), key=key)
    listed = {one.candidate.name: one for one in [*firsts.values(), *front, *finalists]}
    return list(listed.values())[: settings.measured]
