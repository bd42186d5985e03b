"""What the compression verbs are told, and what they give back.

For: plain descriptions of what a verb does, so that it takes one argument.
Not for: doing them (`miudo.compress.verbs`).
Read next: `miudo.compress.verbs`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from miudo.compress.distill.terms import DistillSettings
from miudo.compress.distill.ways import Way
from miudo.compress.method import Method, Quantizer, Report, in_range
from miudo.compress.quantize.nearest import NearestRounding
from miudo.config import ModelConfig
from miudo.data.pipeline import PrepareSettings
from miudo.records import Measurement, Record
from miudo.tensors import DType
from miudo.train.loop import FitResult
from miudo.train.settings import FitSettings

__all__ = ["DistillJob", "PruneJob", "QuantizeJob", "Shrunk", "report_measurements"]


@dataclass(frozen=True, slots=True)
class DistillJob:
    """`student`: a share of the teacher's non-embedding parameters, a preset, or a config.

    None is a share of 0.25; with a `dtype` it is the teacher itself. The student is trained to be
    rounded to `dtype` then, its token table and head to `tables` (None: to `dtype` too), and
    becomes a GGUF file.

    `start`, if given, is a model whose weights the student begins with; its shape counts then.
    `student_layers`, if given, makes the student of these layers of the teacher instead.
    `more_teachers` teach beside the first. `inputs` are texts, or one data folder packed with
    the teacher's tokenizer. `way`, if given, is how the teacher is asked; across tokenizers
    (`CrossSettings`) tokenizer and data are those of `start`. `keep_zeros` is for a `start` that
    was pruned: None goes by its record.
    """

    teacher: Path
    inputs: tuple[str, ...]
    out: Path
    fit: FitSettings
    student: float | str | ModelConfig | None = None
    start: Path | None = None
    student_layers: tuple[int, ...] = ()
    more_teachers: tuple[Path, ...] = ()
    loss: DistillSettings = field(default_factory=DistillSettings)
    way: Way | None = None
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    keep_zeros: bool | None = None
    dtype: DType | None = None
    tables: DType | None = None


@dataclass(frozen=True, slots=True)
class PruneJob:
    """`methods` are applied in order; `fit`, if given, is how long the rest learns again.

    `repair`, if given, is the ridge of a least-squares fit after each method.
    `keep_zeros` is for a model that was sparse before: None goes by its record.
    """

    model: Path
    inputs: tuple[str, ...]
    out: Path
    methods: tuple[Method, ...]
    fit: FitSettings | None = None
    loss: DistillSettings = field(default_factory=DistillSettings)
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    calibration_tokens: int = 32_768
    calibration_length: int = 256
    repair: float | None = None
    keep_zeros: bool | None = None

    def __post_init__(self) -> None:
        if self.repair is not None:
            in_range("repair", self.repair, 1e-6, 100.0)


@dataclass(frozen=True, slots=True)
class QuantizeJob:
    """`inputs` are texts or one data folder, for methods that calibrate.

    With `rotation_seed` the model is rotated first. `max_bytes` is the file's largest size, for
    `MixedTypes` alone. `sparse` stores pruned matrices without zeros: a file for miudo alone.
    `calibration_tokens` None: as many as the model's width asks for.
    """

    model: Path
    out: Path
    method: Quantizer = field(default_factory=NearestRounding)
    inputs: tuple[str, ...] = ()
    rotation_seed: int | None = None
    max_bytes: int | None = None
    sparse: bool = False
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    calibration_tokens: int | None = None
    calibration_length: int = 256


@dataclass(frozen=True, slots=True)
class Shrunk:
    """Where the smaller model lies, what was done, and its record."""

    path: Path
    config: ModelConfig
    record: Record
    reports: tuple[Report, ...] = ()
    fit: FitResult | None = None


def report_measurements(reports: tuple[Report, ...]) -> list[Measurement]:
    """Returns the counts of a chain of methods: from the first one's start to the last's end."""
    first, last = reports[0], reports[-1]
    counted = [
        ("parameters_before", first.parameters_before, "1"),
        ("parameters", last.parameters_after, "1"),
        ("weights_before", first.bytes_before, "B"),
        ("weights", last.bytes_after, "B"),
        ("bits_per_weight", last.bits_per_weight, "bit"),
    ]
    return [Measurement(name, value, unit, "counted") for name, value, unit in counted]
