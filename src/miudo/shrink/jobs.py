"""What `miudo shrink` is told, and where its folder has what.

For: plain values that the whole search reads.
Not for: the search (`miudo.shrink.search`).
Read next: `miudo.shrink.ground`.

    OUT/data/             packed text, unless a data folder was given
    OUT/stages.json       what is done, with its seconds
    OUT/baseline.json     the teacher and this machine, measured
    OUT/forecast.json     every candidate with what is predicted of it, and the rounds
    OUT/rounds.json       what each round found
    OUT/measured.json     the last ones as files on the engine
    OUT/controls.json     the chosen one's controls
    OUT/work/             trunks and files of candidates; may be deleted in the end
    OUT/model.gguf        the chosen model; OUT/report.html, report.json, report.csv
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miudo.compress.catalogue import METHODS
from miudo.compress.distill.divergence import ALPHA, TEMPERATURE
from miudo.compress.distill.terms import DistillSettings
from miudo.compress.method import in_range
from miudo.data.pipeline import PrepareSettings
from miudo.errors import ConfigError, UsageError
from miudo.shrink.budget import Budget, Prefer
from miudo.shrink.candidates import Order
from miudo.train.settings import Compile, FitSettings

__all__ = ["ShrinkJob", "ShrinkSettings"]


@dataclass(frozen=True, slots=True)
class ShrinkSettings:
    """How the search is done. `minutes` are for learning in all, controls too.

    `steps`, if given, is what the last round's candidates learn for instead: the same on any
    machine. `seeds` is how often the chosen one and its controls are trained. Losses for
    choosing are taken on `selection_tokens` of held-out text, the report's figures on other
    held-out text of `measured_bytes`. `measured` candidates become files. `tasks` are names of
    `miudo.evaluate.tasks`, whose files are `task_data`. `methods`, if given, are the catalogue's
    that may be used.
    """

    minutes: float = 20.0
    steps: int | None = None
    order: Order | None = None
    prefer: Prefer = Prefer.QUALITY
    seed: int = 0
    seeds: int = 1
    batch_size: int = 8
    length: int = 256
    lr: float = 1e-3
    muon_lr: float = 3e-3
    temperature: float = TEMPERATURE
    alpha: float = ALPHA
    trunks: int = 12
    measured: int = 10
    calibration_tokens: int = 8192
    selection_tokens: int = 8192
    measured_bytes: int = 60_000
    threads: int | None = None
    repeats: int = 5
    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    task_data: tuple[str, ...] = ()
    task_limit: int | None = None

    def __post_init__(self) -> None:
        in_range("minutes", self.minutes, 0.01, 1e6)
        if self.steps is not None:
            in_range("steps", self.steps, 1, 1 << 32, whole=True)
        for name in ("seeds", "trunks", "measured", "repeats"):
            in_range(name, getattr(self, name), 1, 1000, whole=True)
        for name in ("calibration_tokens", "selection_tokens", "measured_bytes"):
            in_range(name, getattr(self, name), 1, 1 << 40, whole=True)
        if unknown := sorted(set(self.methods) - set(METHODS)):
            raise ConfigError(
                f"no method is called {unknown[0]!r}",
                where="methods",
                remedy=f"Known are {', '.join(sorted(METHODS))}",
            )
        if bool(self.tasks) != bool(self.task_data):
            raise ConfigError(
                "tasks and task_data go together", remedy="Name the tasks and their files"
            )
        self.fit(1, self.seed)
        _ = self.loss  # both raise for values that no training can have

    @property
    def loss(self) -> DistillSettings:
        """What students learn: `alpha` parts of the teacher's distributions, the rest the text."""
        return DistillSettings.of(temperature=self.temperature, alpha=self.alpha)

    def fit(self, steps: int, seed: int) -> FitSettings:
        """Returns the training settings of `steps` steps. Raises ConfigError for wrong values."""
        return FitSettings(
            steps=steps,
            batch_size=self.batch_size,
            length=self.length,
            lr=self.lr,
            muon_lr=self.muon_lr,
            seed=seed,
            # Compiling takes longer than it saves in runs as short as these.
            compile=Compile.OFF,
            eval_tokens=self.selection_tokens,
            save_every=max(1, min(50, steps // 4)),
            keep=1,
        )


@dataclass(frozen=True, slots=True)
class ShrinkJob:
    """Teacher, text, budget, folder. `inputs` are texts, or one data folder of its tokenizer."""

    teacher: Path
    inputs: tuple[str, ...]
    out: Path
    budget: Budget
    settings: ShrinkSettings = field(default_factory=ShrinkSettings)
    prepare: PrepareSettings = field(default_factory=PrepareSettings)

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UsageError("no text is named", where="--data", remedy="Give --data FILE")
        if self.settings.prefer is not Prefer.QUALITY and self.budget.max_ppl_increase is None:
            raise ConfigError(
                f"the {self.settings.prefer} would be bought with any quality",
                where="--prefer",
                remedy="Give --max-ppl-increase too",
            )

    def to_json(self) -> dict[str, Any]:
        """Returns what a resumed search must have been started with, as plain JSON values."""
        return {
            "inputs": [text if text == "-" else str(Path(text).resolve()) for text in self.inputs],
            "budget": dataclasses.asdict(self.budget),
            "settings": dataclasses.asdict(self.settings),
            "prepare": dataclasses.asdict(self.prepare),
        }
