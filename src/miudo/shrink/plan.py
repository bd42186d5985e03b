"""What a search would do: candidates, rounds, memory and time, before anything is written.

For: `miudo shrink --dry-run`.
Not for: doing it (`miudo.shrink.search`).
Read next: `miudo.shrink.forecast`.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.report import Table, text_table
from miudo.shrink.candidates import absent
from miudo.shrink.forecast import Forecast, Guess, controls_step_s, forecast
from miudo.shrink.ground import Baseline, measure_baseline, open_ground
from miudo.shrink.jobs import ShrinkJob
from miudo.shrink.search import check_energy
from miudo.train.progress import Progress, Silent

__all__ = ["Plan", "plan_shrink"]

_SHOWN = 30


@dataclass(frozen=True, slots=True)
class Plan:
    """The baseline and the forecast that a search would begin with, and what they took."""

    job: ShrinkJob
    baseline: Baseline
    forecast: Forecast
    forecast_s: float

    def seconds(self) -> dict[str, tuple[float, str]]:
        """Returns the time of each part in seconds, an estimate, and its basis."""
        learning = sum(
            r.steps * cost for r, cost in zip(self._rounds(), self._costs(), strict=True)
        )
        last = self._rounds()[-1].steps if self._rounds() else 0
        settings = self.job.settings
        files = settings.measured + 4 * settings.seeds
        return {
            "forecast": (self.forecast_s, "measured: done now, and done again then"),
            "learning": (learning, "steps x the dearest candidates' seconds a step"),
            "controls": (
                last * controls_step_s(settings, self.baseline, self._dearest()),
                "steps x seconds a step of the teacher's shape",
            ),
            "measuring": (
                files * self.baseline.measure_s,
                f"{files} files x {self.baseline.measure_s:.1f} s of the rounded teacher",
            ),
        }

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            **self.forecast.to_json(),
            "dry_run": True,
            "baseline": dataclasses.asdict(self.baseline),
            "seconds": {
                name: {"estimate": value, "basis": basis}
                for name, (value, basis) in self.seconds().items()
            },
            "absent_methods": absent(),
        }

    def text(self) -> str:
        """Returns the plan for a terminal."""
        baseline, teacher = self.baseline, self.baseline.teacher.row
        speed = teacher.bench.speed.new_tokens_per_s
        lines = [
            f"teacher    {teacher.size_bytes / 1e6:,.2f} MB, {teacher.parameters:,} parameters, "
            f"perplexity {teacher.quality.ppl:.3f}, {speed:,.0f} new tokens/s (measured)",
            f"budget     {self.job.budget.describe()}",
            f"candidates {len(self.forecast.guesses)} proposed, "
            f"{sum(not g.out for g in self.forecast.guesses)} small enough, "
            f"{len(self.forecast.trunks)} trunks to try",
            "",
            text_table(self._candidates()),
            "",
            *(f"round {i}: {r.candidates} trunks learn {r.steps:,} steps"
              for i, r in enumerate(self._rounds(), start=1)),
            "",
            text_table(self._memory()),
            "",
            text_table(self._time()),
            *(f"warning: {warning}" for warning in baseline.warnings),
        ]  # fmt: skip
        if missing := absent():
            lines.append(f"not in this build, not tried: {', '.join(missing)}")
        return "\n".join(lines)

    def _rounds(self) -> tuple[Any, ...]:
        return self.forecast.rounds

    def _costs(self) -> list[float]:
        """Returns the most that a step of each round may cost, all its candidates together."""
        costs = {g.candidate.group: g.step_s for g in self.forecast.guesses if not g.out}
        dearest = sorted((costs[t] for t in self.forecast.trunks if costs[t] > 0), reverse=True)
        return [sum(dearest[: r.candidates]) for r in self._rounds()]

    def _dearest(self) -> list[float]:
        return [g.step_s for g in self.forecast.guesses]

    def _candidates(self) -> Table:
        tried = [g for name in self.forecast.trunks for g in self.forecast.of(name)]
        rows = [self._row(guess) for guess in tried[:_SHOWN]]
        caption = f"{len(tried) - len(rows)} more" if len(tried) > len(rows) else ""
        headers = ["candidate", "order", "size", "tok/s", "loss before learning", "s a step"]
        return Table(headers, rows, caption=caption, text_columns=frozenset({0, 1}))

    def _row(self, guess: Guess) -> list[str]:
        return [
            guess.candidate.name,
            guess.candidate.order.value,
            f"~{guess.size_bytes / 1e6:,.2f} MB",
            f"~{guess.tokens_per_s:,.0f}",
            f"{guess.loss:.3f}",
            f"~{guess.step_s:.2f}" if guess.step_s else "-",
        ]

    def _memory(self) -> Table:
        parts = self.baseline.memory
        rows = [[name, f"{size / 1e6:,.0f}", basis] for name, size, basis in parts]
        total = sum(size for _, size, _ in parts)
        rows.append(["in all", f"{total / 1e6:,.0f}", "the sum: an estimate"])
        rows.append(["free", f"{self.baseline.free_bytes / 1e6:,.0f}", "measured before"])
        return Table(["memory of learning", "MB", "basis"], rows, text_columns=frozenset({0, 2}))

    def _time(self) -> Table:
        parts = self.seconds()
        rows = [[name, f"~{value / 60:.1f}", basis] for name, (value, basis) in parts.items()]
        total = sum(value for value, _ in parts.values())
        rows.append(["in all", f"~{total / 60:.1f}", f"asked for: {self.job.settings.minutes:g}"])
        return Table(["time", "minutes", "basis"], rows, text_columns=frozenset({0, 2}))


def plan_shrink(job: ShrinkJob, progress: Progress | None = None) -> Plan:
    """Returns the plan of `job`; all that is written for it is deleted again.

    Raises what `run_shrink` raises before it trains.
    """
    check_energy(job)
    with tempfile.TemporaryDirectory(prefix="miudo-") as folder:
        ground = open_ground(job, Path(folder), progress or Silent())
        begun = time.perf_counter()
        baseline = measure_baseline(ground)
        found = forecast(ground, baseline)
        return Plan(job, baseline, found, time.perf_counter() - begun)
