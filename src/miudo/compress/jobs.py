"""What the compression verbs are told, and what they give back.

For: plain descriptions of a distillation and a pruning, so that the verbs take one argument.
Not for: doing them (`miudo.compress.verbs`).
Read next: `miudo.compress.verbs`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from miudo.compress.distill.terms import DistillSettings
from miudo.compress.method import Method, Report
from miudo.config import ModelConfig
from miudo.data.pipeline import PrepareSettings
from miudo.records import Record
from miudo.train.loop import FitResult
from miudo.train.settings import FitSettings

__all__ = ["DistillJob", "PruneJob", "Shrunk"]


@dataclass(frozen=True, slots=True)
class DistillJob:
    """`student`: a share of the teacher's non-embedding parameters, a preset, or a config.

    `start`, if given, is a model whose weights the student begins with; its shape counts then.
    `student_layers`, if given, makes the student of these layers of the teacher instead.
    `more_teachers` teach beside the first. `inputs` are texts, or one data folder packed with
    the teacher's tokenizer. `keep_zeros` is for a `start` that was pruned: None
    goes by its record.
    """

    teacher: Path
    inputs: tuple[str, ...]
    out: Path
    fit: FitSettings
    student: float | str | ModelConfig = 0.25
    start: Path | None = None
    student_layers: tuple[int, ...] = ()
    more_teachers: tuple[Path, ...] = ()
    loss: DistillSettings = field(default_factory=DistillSettings)
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    keep_zeros: bool | None = None


@dataclass(frozen=True, slots=True)
class PruneJob:
    """`methods` are applied in order; `fit`, if given, is how long the rest learns again.

    `keep_zeros` is for a model that was sparse before: None goes by its record.
    """

    model: Path
    inputs: tuple[str, ...]
    out: Path
    methods: tuple[Method, ...]
    fit: FitSettings | None = None
    loss: DistillSettings = field(default_factory=DistillSettings)
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    calibration_tokens: int = 65_536
    calibration_length: int = 256
    keep_zeros: bool | None = None


@dataclass(frozen=True, slots=True)
class Shrunk:
    """Where the smaller model lies, what was done, and its record."""

    path: Path
    config: ModelConfig
    record: Record
    reports: tuple[Report, ...] = ()
    fit: FitResult | None = None
