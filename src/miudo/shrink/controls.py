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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from miudo.compress.method import Method
from miudo.compress.prune.depth import DepthPruning, DepthStatistics
from miudo.compress.prune.width import WidthPruning, WidthStatistics
from miudo.decoder.decoder import Block, Decoder
from miudo.errors import DataError
from miudo.shrink.candidates import LEARN, STUDENT, Step
from miudo.shrink.ground import Ground
from miudo.shrink.making import Trunk, cut, make_trunk
from miudo.shrink.scoring import Scored, trunk_folder

__all__ = ["Control", "controls_of"]

_BY_TEXT = Step.of(LEARN, loss="text")
_CUTS = ("depth", "width")


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

    def make(self, ground: Ground, work: Path) -> Trunk:
        """Returns its trunk, made in `work`; from there if it is made."""
        chosen, steps = self._chosen, self._chosen.candidate.trunk
        folder = work / "controls" / self.name
        if self.kind == "nearest":
            made = trunk_folder(work, chosen.candidate, chosen.round)
            return make_trunk(ground, steps, made, chosen.steps, seed=self.seed)
        start, calibrate = None, None
        if self.kind == "from nothing":
            start = Decoder(cut(ground, steps, seed=self.seed).config)
            start.initialise(self.seed)
            steps = (_BY_TEXT,)
        elif self.kind == "by text alone":
            steps = tuple(_BY_TEXT if step.method == LEARN else step for step in steps)
        elif self.kind == "by magnitude":
            calibrate = _by_magnitude
        return make_trunk(
            ground,
            steps,
            folder,
            chosen.steps,
            seed=self.seed,
            start=start,
            calibrate=calibrate,
        )


def controls_of(ground: Ground, chosen: Scored) -> tuple[list[Control], list[str]]:
    """Returns the controls of `chosen`, and notes on those that have no meaning for it."""
    settings, candidate = ground.job.settings, chosen.candidate
    first = Control("by magnitude", settings.seed, candidate.rounding, chosen)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    found: list[Control] = []
    notes: list[str] = []
    if candidate.learns:
        for seed in seeds:
            found += [
                replace(first, kind="from nothing", seed=seed),
                replace(first, kind="by text alone", seed=seed),
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
    if candidate.rounding.method == "nearest":
        notes.append("nearest: the chosen one is rounded to nearest itself")
    else:
        nearest = Step.of("nearest", dtype=candidate.dtype)
        found.append(replace(first, kind="nearest", rounding=nearest))
    return found, notes


def _by_magnitude(method: Method, decoder: Decoder) -> Any:
    """Returns statistics that come of the weights alone."""
    blocks = [cast("Block", block) for block in decoder.layers]
    if isinstance(method, DepthPruning):
        norms = [_norm(list(block.parameters())) for block in blocks]
        removal = sorted(range(len(norms)), key=lambda i: norms[i])[: method.drop]
        return DepthStatistics(tuple(norms), tuple(removal), tokens=1)
    if isinstance(method, WidthPruning):
        # The score multiplies with the norm of the neuron's way out.
        energy = [block.mlp.up.weight.detach().double().square().sum(dim=1) for block in blocks]
        return WidthStatistics(tuple(e.numpy() for e in energy), tokens=1)
    raise DataError(f"{method.name} has no rule of magnitude")


def _norm(parameters: Sequence[torch.Tensor]) -> float:
    return float(sum(p.detach().double().square().sum() for p in parameters)) ** 0.5
