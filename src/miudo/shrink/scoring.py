"""Rounds of short training, each for fewer candidates and longer, until a few are left.

For: who goes on, and the scores that say so.
Not for: how long a round is (`miudo.shrink.halving`) or measuring files
(`miudo.shrink.search`).
Read next: `miudo.shrink.search`.

    WORK/TRUNK/round-N/   the trunk as `miudo.shrink.making` leaves it, and scores.json
    WORK/round-N.json     how many steps the round's candidates get, decided when it begins
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.decoder.decoder import Decoder
from miudo.plain_json import read_json, write_json
from miudo.shrink.budget import Figures
from miudo.shrink.candidates import Candidate
from miudo.shrink.forecast import Forecast, Guess
from miudo.shrink.ground import Baseline, Ground
from miudo.shrink.halving import Round
from miudo.shrink.making import make_trunk, round_trunk
from miudo.shrink.stages import DELETE

__all__ = ["Scored", "run_rounds", "trunk_folder"]

_MOST_FASTER = 1.5


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate after a round: its loss as it would be stored, on the text that chooses.

    `size_bytes` are its tensors' and what a file has besides; speed is predicted.
    """

    candidate: Candidate
    round: int
    steps: int
    tokens: int
    seconds: float
    size_bytes: float
    tokens_per_s: float
    loss: float

    @property
    def lesson_steps(self) -> int:
        """Steps of each learning, and of a rounding that is trained."""
        return max(1, self.steps // max(1, self.candidate.lessons))

    def figures(self, teacher_loss: float) -> Figures:
        """Returns the figures to rank by."""
        increase = math.expm1(min(50.0, self.loss - teacher_loss))
        return Figures(self.size_bytes, self.tokens_per_s, increase)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_json` gives back equal scores."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**values, "candidate": self.candidate.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scored:
        """Returns the scores that `to_json` wrote."""
        return cls(**{**values, "candidate": Candidate.from_json(values["candidate"])})


def trunk_folder(work: Path, candidate: Candidate, number: int) -> Path:
    """Returns where the trunk lies that a round made."""
    return work / candidate.group / f"round-{number}"


def run_rounds(ground: Ground, baseline: Baseline, forecast: Forecast, work: Path) -> list[Scored]:
    """Returns every score of every round, in the order in which they were taken.

    Trunks that learn nothing are scored once, as round 0. What was scored before is read.
    """
    found: list[Scored] = []
    learning: list[str] = []
    for name in forecast.trunks:
        if forecast.of(name)[0].candidate.learns:
            learning.append(name)
        else:
            found += _scored(ground, baseline, forecast.of(name), work, 0, 0)
    job = ground.job
    for number, planned in enumerate(forecast.rounds, start=1):
        learning = learning[: planned.candidates]
        steps = _steps(forecast, planned, number, found, work, fixed=job.settings.steps is not None)
        ground.progress.note(
            f"round {number} of {len(forecast.rounds)}: {len(learning)} trunks learn "
            f"{steps:,} steps each"
        )
        best: dict[str, tuple[float, float]] = {}
        for name in learning:
            scores = _scored(ground, baseline, forecast.of(name), work, number, steps)
            found += scores
            best[name] = min(
                job.budget.rank(s.figures(baseline.loss), job.settings.prefer) for s in scores
            )
        learning.sort(key=lambda name: best[name])
    for early in range(1, len(forecast.rounds)):  # their scores are all that is wanted of them
        for path in work.glob(f"*/round-{early}/trunk.gguf"):
            path.unlink()
        for path in work.glob(f"*/round-{early}/round-*/checkpoints"):
            shutil.rmtree(path)
    return found


def _steps(
    forecast: Forecast,
    planned: Round,
    number: int,
    found: Sequence[Scored],
    work: Path,
    *,
    fixed: bool,
) -> int:
    """Returns a round's steps: as planned, or as many as a step was dearer or cheaper so far."""
    path = work / f"round-{number}.json"
    work.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return int(read_json(path, remedy=DELETE)["steps"])
    steps = planned.steps
    learned = {(s.candidate.group, s.round): s for s in found if s.round > 0}
    if learned and not fixed:
        costs = {g.candidate.group: g.step_s for g in forecast.guesses if not g.out}
        expected = sum(costs[trunk] * s.steps for (trunk, _), s in learned.items())
        took = sum(s.seconds for s in learned.values())
        steps = max(1, int(steps * min(_MOST_FASTER, expected / max(took, 1e-9))))
    write_json(path, {"schema": 1, "steps": steps})
    return steps


def _scored(
    ground: Ground,
    baseline: Baseline,
    guesses: Sequence[Guess],
    work: Path,
    number: int,
    steps: int,
) -> list[Scored]:
    """Returns the scores of one trunk's candidates after `steps` of learning."""
    first = guesses[0].candidate
    folder = trunk_folder(work, first, number)
    path = folder / "scores.json"
    if path.exists():
        return [Scored.from_json(values) for values in read_json(path, remedy=DELETE)["scores"]]
    seed, share = ground.job.settings.seed, max(1, steps // max(1, first.lessons))
    trunk = make_trunk(ground, first.trunk, folder, share, seed=seed)
    scores = []
    for guess in _best_of_each_type(guesses):
        begun = time.perf_counter()
        step = guess.candidate.rounding
        made = round_trunk(ground, step, trunk, folder, share, seed=seed)
        loss = ground.loss(Decoder.from_weights(trunk.decoder.config, made.weights))
        scores.append(
            Scored(
                candidate=guess.candidate,
                round=number,
                steps=steps,
                tokens=trunk.tokens + made.tokens,
                seconds=trunk.seconds + made.seconds,
                size_bytes=made.report.bytes_after + baseline.extra_bytes,
                tokens_per_s=guess.tokens_per_s,
                loss=loss,
            )
        )
        took = time.perf_counter() - begun
        ground.progress.note(f"  {guess.candidate.name}: loss {loss:.4f} ({took:.1f} s)")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"schema": 1, "scores": [score.to_json() for score in scores]})
    return scores


def _best_of_each_type(guesses: Sequence[Guess]) -> list[Guess]:
    """Returns for each type the rounding that did the teacher the least harm."""
    best: dict[str | None, Guess] = {}
    for guess in guesses:
        dtype = guess.candidate.dtype
        if dtype not in best or guess.loss < best[dtype].loss:
            best[dtype] = guess
    return list(best.values())
