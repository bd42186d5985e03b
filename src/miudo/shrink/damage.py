"""What cutting alone and rounding alone add to the teacher's loss, before any learning.

For: the forecast, which adds them up.
Not for: what is left after learning (`miudo.shrink.measure`).
Read next: `miudo.shrink.making`, which cuts and rounds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.shrink.candidates import LEARN, NEAREST, SPARSE, TRAINED, Candidate, Step
from miudo.shrink.ground import Baseline, Ground
from miudo.shrink.making import Trunk, cut, round_trunk

__all__ = ["Cuts", "rounding_damage"]

_SLOW, _TOO_SLOW = 0.02, 0.08
"""Of the time: a rounding that takes longer for the teacher alone is for the best, or for none."""

_PROBED = ("Q4_0", "Q3_K", "Q4_K")
"""Types for which methods that calibrate are tried on the teacher: the first that there is."""


class Cuts:
    """Cuts trunks, remembering the losses: trunks that differ in their learning are cut alike.

    Zeros take by far the longest to find, and add to a cut model's loss what they add to the
    teacher's (0.01 to 0.3 nats off, where cuts are 1 to 5 apart): they are found in the teacher
    alone.
    """

    def __init__(self, ground: Ground, teacher_loss: float) -> None:
        self._ground = ground
        self._teacher_loss = teacher_loss
        self._known: dict[tuple[Step, ...], tuple[ModelConfig, float]] = {}

    def of(self, candidate: Candidate) -> tuple[ModelConfig, float]:
        """Returns the shape, and the loss before any learning."""
        return self._of(tuple(step for step in candidate.trunk if step.method != LEARN))

    def _of(self, steps: tuple[Step, ...]) -> tuple[ModelConfig, float]:
        if steps not in self._known:
            self._known[steps] = self._zeros_added(steps) or self._made(steps)
        return self._known[steps]

    def _zeros_added(self, steps: tuple[Step, ...]) -> tuple[ModelConfig, float] | None:
        if len(steps) < 2 or steps[-1].method != SPARSE:
            return None
        config, loss = self._of(steps[:-1])
        return config, loss + self._of(steps[-1:])[1] - self._teacher_loss

    def _made(self, steps: tuple[Step, ...]) -> tuple[ModelConfig, float]:
        self._ground.progress.note(f"cut: {'_'.join(s.label() for s in steps) or 'nothing'}")
        decoder = cut(self._ground, steps, seed=self._ground.job.settings.seed)
        return decoder.config, self._ground.loss(decoder)


def rounding_damage(
    ground: Ground, baseline: Baseline, candidates: Iterable[Candidate]
) -> tuple[dict[Step, float], dict[str, str], dict[str, float]]:
    """Returns what each rounding adds to the teacher's loss, and why some methods are slow.

    The last are the seconds of those that are not too slow for a few.

    Rounding to nearest is measured for every type. A method that calibrates is measured for one
    type, and for the others taken to do as much better than nearest as there; one that trains,
    to do as nearest does.
    """
    settings = ground.job.settings
    steps = list(dict.fromkeys(candidate.rounding for candidate in candidates))
    nearest: dict[Any, float] = {}
    for dtype in dict.fromkeys(step.values["dtype"] for step in steps):
        nearest[dtype] = _damage(ground, baseline, Step.of(NEAREST, dtype=dtype))
    ratios: dict[str, float] = {NEAREST: 1.0, TRAINED: 1.0}
    slow, late = dict[str, str](), dict[str, float]()
    hopeless = ""
    for step in steps:
        if step.method in ratios:
            continue
        if hopeless:  # methods come by what they cost: dearer ones are not even measured
            slow[step.method] = f"{step.method} takes longer than {hopeless}"
            ratios[step.method] = 1.0
            continue
        own = {s.values["dtype"]: s for s in steps if s.method == step.method}
        dtype = next((t for t in _PROBED if t in own), step.values["dtype"])
        begun = time.perf_counter()
        ratio = _damage(ground, baseline, own[dtype]) / max(nearest[dtype], 1e-6)
        took = time.perf_counter() - begun
        ratios[step.method] = min(1.0, max(0.0, ratio))
        share = took / (60.0 * settings.minutes)
        if settings.steps is None and share > _SLOW:
            slow[step.method] = f"{step.method} took {took:.0f} s for the teacher"
            if share <= _TOO_SLOW:
                late[step.method] = took
            else:
                hopeless = step.method
    adds = {step: ratios[step.method] * nearest[step.values["dtype"]] for step in steps}
    return adds, slow, late


def _damage(ground: Ground, baseline: Baseline, step: Step) -> float:
    ground.progress.note(f"rounding the teacher: {step.label()}")
    whole = Trunk(ground.teacher.decoder, 0, 0.0, (), ground.sparse)
    rounded = round_trunk(ground, step, whole)
    config = whole.decoder.config
    return ground.loss(Decoder.from_weights(config, rounded.weights)) - baseline.loss
