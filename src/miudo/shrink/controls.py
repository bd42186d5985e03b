"""What the chosen candidate is held against: the same cost, spent more simply.

For: the rows without which a small loss proves nothing.
Not for: other candidates.
Read next: `miudo.shrink.search`.

- from nothing: the chosen one's shape, drawn at random, learns as many tokens from text alone
- by text alone: the chosen one's steps, without the teacher's distributions
- by magnitude: the same cuts, chosen by the weights' size instead of by what fires
- nearest: the chosen one's trunk, rounded to nearest
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from miudo.compress.method import Method
from miudo.compress.prune.depth import DepthPruning, DepthStatistics
from miudo.compress.prune.width import WidthPruning, WidthStatistics
from miudo.decoder.decoder import Block, Decoder
from miudo.shrink.candidates import LEARN, NEAREST, SPARSE, STUDENT, TRAINED, Step
from miudo.shrink.ground import Ground
from miudo.shrink.making import Rounded, Trunk, cut, make_trunk, round_trunk
from miudo.shrink.scoring import Scored, trunk_folder

__all__ = ["Control", "controls_of"]

_BY_TEXT = Step.of(LEARN, loss="text")
_CUTS = ("depth", "width", SPARSE)


@dataclass(frozen=True, slots=True)
class Control:
    """`kind` tells what it is, `seed` that of its training; `rounding` stores it."""

    kind: str
    seed: int
    rounding: Step
    _chosen: Scored

    @property
    def name(self) -> str:
        """Names the control, as its file."""
        return f"{self.kind.replace(' ', '-')}-{self.seed}"

    def make(self, ground: Ground, work: Path) -> tuple[Trunk, Rounded]:
        """Returns its trunk and how it is stored, made in `work`; from there if it is made."""
        chosen, steps = self._chosen, self._chosen.candidate.trunk
        folder, share = self._place(work)
        start, calibrate = None, None
        if self.kind == "from nothing":
            start = Decoder(cut(ground, steps, seed=self.seed).config)
            start.initialise(self.seed)
            steps, share = (_BY_TEXT,), chosen.steps
        elif self.kind == "by text alone":
            steps = tuple(_BY_TEXT if step.method == LEARN else step for step in steps)
            if self.rounding is not chosen.candidate.rounding:  # its steps go to learning
                learns = sum(step.method == LEARN for step in steps)
                steps = steps if learns else (*steps, _BY_TEXT)
                share = max(1, chosen.steps // max(1, learns))
        elif self.kind == "by magnitude":
            steps = tuple(map(_magnitude_step, steps))
            calibrate = partial(_by_magnitude, batches=ground.batches)
        trunk = make_trunk(
            ground, steps, folder, share, seed=self.seed, start=start, calibrate=calibrate
        )
        made = round_trunk(ground, self.rounding, trunk, folder, share, seed=self.seed)
        return trunk, made

    def _place(self, work: Path) -> tuple[Path, int]:
        """Returns its folder, and the steps of a lesson."""
        chosen = self._chosen
        share = chosen.lesson_steps
        if self.kind == "nearest":
            return trunk_folder(work, chosen.candidate, chosen.round), share
        return work / "controls" / self.name, share


def controls_of(ground: Ground, chosen: Scored) -> tuple[list[Control], list[str]]:
    """Returns the controls of `chosen`, and notes on those that have no meaning for it."""
    settings, candidate = ground.job.settings, chosen.candidate
    first = Control("by magnitude", settings.seed, candidate.rounding, chosen)
    # Trained rounding learns from the teacher: where that is to be left out, nearest stands in.
    plain = candidate.rounding
    if plain.method == TRAINED:
        plain = Step.of(NEAREST, dtype=candidate.dtype)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    found: list[Control] = []
    notes: list[str] = []
    if candidate.learns:
        for seed in seeds:
            found += [
                replace(first, kind="from nothing", seed=seed, rounding=plain),
                replace(first, kind="by text alone", seed=seed, rounding=plain),
            ]
        found += [replace(first, kind="chosen again", seed=seed) for seed in seeds[1:]]
    else:
        notes.append(
            "from nothing, by text alone: the chosen one learned nothing, there are no tokens to "
            "be equal in"
        )
    cuts = [step for step in candidate.trunk if step.method not in (LEARN, STUDENT)]
    if cuts and all(step.method in _CUTS for step in cuts):
        found.append(first)
    else:
        names = ", ".join(step.method for step in cuts if step.method not in _CUTS)
        notes.append(f"by magnitude: {f'{names} has no such rule' if cuts else 'nothing was cut'}")
    if candidate.rounding.method == NEAREST:
        notes.append("nearest: the chosen one is rounded to nearest itself")
    else:
        nearest = Step.of(NEAREST, dtype=candidate.dtype)
        found.append(replace(first, kind="nearest", rounding=nearest))
    return found, notes


def _by_magnitude(method: Method, decoder: Decoder, batches: Sequence[torch.Tensor]) -> Any:
    """Returns statistics that come of the weights alone; of other methods than cuts, their own."""
    blocks = [cast("Block", block) for block in decoder.layers]
    if isinstance(method, DepthPruning):
        norms = [_norm(list(block.parameters())) for block in blocks]
        removal = sorted(range(len(norms)), key=lambda i: norms[i])[: method.drop]
        return DepthStatistics(tuple(norms), tuple(removal), tokens=1)
    if isinstance(method, WidthPruning):
        # The score multiplies with the norm of the neuron's way out.
        energy = [block.mlp.up.weight.detach().double().square().sum(dim=1) for block in blocks]
        return WidthStatistics(tuple(e.numpy() for e in energy), tokens=1)
    return method.calibrate(decoder, batches)


def _magnitude_step(step: Step) -> Step:
    """Returns the step that looks at weights alone, where the method itself has that rule."""
    if step.method == SPARSE:
        return Step.of(SPARSE, **{**step.values, "method": "magnitude"})
    return step


def _norm(parameters: Sequence[torch.Tensor]) -> float:
    return math.sqrt(sum(float(p.detach().double().square().sum()) for p in parameters))
