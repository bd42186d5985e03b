"""What the compression verbs are told, what they give back, and what a resumed run must match.

For: plain descriptions of a distillation and a pruning, so that the verbs take one argument.
Not for: doing them (`miudo.compress.verbs`).
Read next: `miudo.compress.verbs`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miudo.compress.distill.response import ResponseSettings
from miudo.compress.method import Method, Report
from miudo.config import ModelConfig
from miudo.data.pipeline import PrepareSettings
from miudo.errors import CheckpointError, UsageError
from miudo.files import open_regular, write_json
from miudo.limits import LIMITS
from miudo.records import Record
from miudo.train.loop import FitResult
from miudo.train.run_folder import RunFolder
from miudo.train.settings import FitSettings

__all__ = ["DistillJob", "PruneJob", "Shrunk", "check_order"]

_RUN_FILE = "run.json"


@dataclass(frozen=True, slots=True)
class DistillJob:
    """`student`: a share of the teacher's non-embedding parameters, a preset, or a config.

    `start`, if given, is a model whose weights the student begins with; its shape counts then.
    `inputs` are texts, or one data folder packed with the teacher's tokenizer.
    """

    teacher: Path
    inputs: tuple[str, ...]
    out: Path
    fit: FitSettings
    student: float | str | ModelConfig = 0.25
    start: Path | None = None
    response: ResponseSettings = field(default_factory=ResponseSettings)
    prepare: PrepareSettings = field(default_factory=PrepareSettings)


@dataclass(frozen=True, slots=True)
class PruneJob:
    """`methods` are applied in order; `fit`, if given, is how long the rest learns again."""

    model: Path
    inputs: tuple[str, ...]
    out: Path
    methods: tuple[Method, ...]
    fit: FitSettings | None = None
    response: ResponseSettings = field(default_factory=ResponseSettings)
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    calibration_tokens: int = 65_536
    calibration_length: int = 256


@dataclass(frozen=True, slots=True)
class Shrunk:
    """Where the smaller model lies, what was done, and its record."""

    path: Path
    config: ModelConfig
    record: Record
    reports: tuple[Report, ...] = ()
    fit: FitResult | None = None


def check_order(folder: RunFolder, order: Mapping[str, Any], *, resume: bool) -> None:
    """Writes what is asked for into the run's folder; where a run is resumed, compares instead.

    Raises UsageError if the run was started with another model, text or settings, and
    CheckpointError if its file is damaged.
    """
    path = folder.path / _RUN_FILE
    if not resume or not path.exists():
        write_json(path, order)
        return
    with open_regular(path, CheckpointError) as file:
        text = file.read(LIMITS.json_bytes)
    try:
        begun = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"cannot be read ({error})",
            where=path,
            remedy="Start a new run in another folder",
        ) from error
    if begun != json.loads(json.dumps(order)):
        raise UsageError(
            "was started with another model, other text or other settings",
            where=path,
            remedy="Resume with the same command, or start a new run in another folder",
        )
