"""The best once more, rounded by methods that take too long to be tried on every candidate.

For: the last digits of the few that lead, out of time that the rounds leave for it.
Not for: who leads (`miudo.shrink.scoring`), or what is too slow (`miudo.shrink.forecast`).
Read next: `miudo.shrink.search`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from miudo.decoder.decoder import Decoder
from miudo.shrink.forecast import MOST_LATE, Forecast, Guess
from miudo.shrink.ground import Baseline, Ground
from miudo.shrink.making import make_trunk, round_trunk
from miudo.shrink.scoring import Scored, trunk_folder

__all__ = ["refine"]


def refine(
    ground: Ground, baseline: Baseline, forecast: Forecast, scored: Sequence[Scored], work: Path
) -> list[Scored]:
    """Returns the scores of the best MOST_LATE candidates in their types, by slower methods.

    Those are the guesses that are late; a candidate for which none promises less loss is passed.
    """
    budget, settings = ground.job.budget, ground.job.settings
    last = max((one.round for one in scored), default=0)
    newest = {one.candidate.name: one for one in scored if one.round in (0, last)}.values()
    found: list[Scored] = []
    for one in sorted(newest, key=lambda s: budget.rank(s.figures(baseline.loss), settings.prefer)):
        late = _late_form(forecast, one)
        if late is None:
            continue
        folder = trunk_folder(work, one.candidate, one.round)
        trunk = make_trunk(
            ground, one.candidate.trunk, folder, one.lesson_steps, seed=settings.seed
        )
        made = round_trunk(
            ground, late.candidate.rounding, trunk, folder, one.lesson_steps, seed=settings.seed
        )
        loss = ground.loss(Decoder.from_weights(trunk.decoder.config, made.weights))
        ground.progress.note(f"  {late.candidate.name}: loss {loss:.4f}")
        found.append(dataclasses.replace(one, candidate=late.candidate, loss=loss))
        if len(found) == MOST_LATE:
            break
    return found


def _late_form(forecast: Forecast, one: Scored) -> Guess | None:
    """Returns the late guess of the same trunk and type that promises the least loss."""
    same = [
        guess
        for guess in forecast.guesses
        if guess.candidate.trunk == one.candidate.trunk
        and guess.candidate.dtype == one.candidate.dtype
    ]
    now = next((g.loss for g in same if g.candidate == one.candidate), None)
    late = min((g for g in same if g.late), key=lambda g: g.loss, default=None)
    return late if late is not None and now is not None and late.loss < now else None
