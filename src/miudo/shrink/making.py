"""A trunk made: cut, taught, cut again, as its steps say; then rounded.

For: candidates and controls, whose steps differ and whose making does not.
Not for: which are made and for how long (`miudo.shrink.search`).
Read next: `miudo.shrink.controls`.

    FOLDER/learn-1/    a training run, gone on with after a stop; its checkpoints go in the end
    FOLDER/trunk.gguf  the decoder in float32
    FOLDER/made.json   tokens, seconds, notes
    FOLDER/round-TYPE/ the run of a rounding that is trained

A trunk that learns nothing leaves nothing: it is made again when it is wanted.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.compress.distill.lesson import Lesson, distill
from miudo.compress.distill.student import scaled
from miudo.compress.distill.terms import DistillSettings, TextTerm
from miudo.compress.method import Method, Quantizer, Report
from miudo.compress.quantize.trained import (
    ROUNDED_FIT,
    ROUNDED_LOSS,
    RoundedStudent,
    TrainedRounding,
)
from miudo.decoder.decoder import Decoder
from miudo.decoder.sparsity import Masks
from miudo.errors import ConfigError
from miudo.formats.gguf import write_gguf
from miudo.plain_json import read_json, write_json
from miudo.shrink.candidates import LEARN, STUDENT, Step, ends_sparse
from miudo.shrink.ground import Ground
from miudo.shrink.stages import DELETE
from miudo.shrink.stored import model_file
from miudo.tensors import Weights
from miudo.train.artefact import open_decoder

__all__ = ["Calibrate", "Rounded", "Trunk", "cut", "make_trunk", "round_trunk"]

Calibrate = Callable[[Method, Decoder], Any]
"""Gives a method its statistics of a decoder."""


@dataclass(frozen=True, slots=True)
class Trunk:
    """The decoder, what it learned from and how long, in all sittings, making it took.

    `sparse` says that its zeros are meant: the teacher's, or those of a step.
    """

    decoder: Decoder
    tokens: int
    seconds: float
    notes: tuple[str, ...]
    sparse: bool

    def masks(self) -> Masks | None:
        """Returns the zeros that stay, None for a dense model."""
        return Masks.of(self.decoder) if self.sparse else None


@dataclass(frozen=True, slots=True)
class Rounded:
    """A file's tensors and their report; `tokens` and `seconds` of training, if it took any."""

    weights: Weights
    report: Report
    tokens: int = 0
    seconds: float = 0.0


def cut(ground: Ground, steps: Sequence[Step], *, seed: int = 0) -> Decoder:
    """Returns the decoder after `steps` without any learning."""
    decoder = ground.teacher.decoder
    for step in steps:
        if step.method != LEARN:
            decoder, _ = _stepped(ground, step, decoder, seed, _by_text(ground))
    return decoder


def make_trunk(
    ground: Ground,
    steps: Sequence[Step],
    folder: Path,
    lesson_steps: int,
    *,
    seed: int,
    start: Decoder | None = None,
    calibrate: Calibrate | None = None,
) -> Trunk:
    """Returns the decoder after `steps`, each LEARN of `lesson_steps`; from `folder` if there.

    It begins as the teacher, or as `start`. A stop leaves a state that the same call goes on from.
    """
    sparse = ground.sparse and start is None
    if (folder / "made.json").exists():
        return _made(folder, sparse=ends_sparse(steps, begins=sparse))
    decoder = ground.teacher.decoder if start is None else start
    tokens, seconds, number = 0, 0.0, 0
    notes: list[str] = []
    begun = time.perf_counter()
    for step in steps:
        if step.method != LEARN:
            statistics = calibrate or _by_text(ground)
            decoder, report = _stepped(ground, step, decoder, seed, statistics)
            notes += [] if report is None else report.notes
            sparse = ends_sparse((step,), begins=sparse)
            continue
        if decoder is ground.teacher.decoder:  # whole: it learns as a copy, the teacher stays
            decoder = copy.deepcopy(decoder)
        number += 1
        seconds += time.perf_counter() - begun
        run = folder / f"learn-{number}"
        lesson = _lesson(ground, lesson_steps, seed, text=step.values.get("loss") == "text")
        learned, elapsed_s = _learn(ground, decoder, run, lesson, sparse=sparse)
        tokens, seconds = tokens + learned, seconds + elapsed_s
        begun = time.perf_counter()
    if not number:  # made again sooner than read
        return Trunk(decoder, 0, time.perf_counter() - begun, tuple(notes), sparse)
    model = model_file(ground.teacher, decoder.config, decoder.to_weights(), None)
    write_gguf(folder / "trunk.gguf", model)
    seconds += time.perf_counter() - begun
    made = {"schema": 1, "tokens": tokens, "seconds": round(seconds, 3), "notes": notes}
    write_json(folder / "made.json", made)
    for run in folder.glob("learn-*"):
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return Trunk(decoder, tokens, seconds, tuple(notes), sparse)


def round_trunk(
    ground: Ground,
    step: Step,
    trunk: Trunk,
    folder: Path | None = None,
    lesson_steps: int = 0,
    *,
    seed: int = 0,
) -> Rounded:
    """Returns the decoder of `trunk`, which stays as it is, as the file holds it.

    A rounding that is trained takes `lesson_steps` in `folder`, learning from the teacher.
    Raises ConfigError for a step that stores nothing.
    """
    method = step.build()
    if isinstance(method, TrainedRounding):
        if folder is None:
            raise ConfigError(f"{step.method} takes a folder and steps")
        return _trained(ground, method, trunk, folder, lesson_steps, seed)
    if not isinstance(method, Quantizer):
        raise ConfigError(f"{step.method} does not round", remedy="Give a rounding method last")
    statistics = _by_text(ground)(method, trunk.decoder) if method.needs_calibration else None
    return Rounded(*method.store(trunk.decoder, statistics))


def _trained(
    ground: Ground,
    method: TrainedRounding,
    trunk: Trunk,
    folder: Path,
    lesson_steps: int,
    seed: int,
) -> Rounded:
    teacher, student, masks = ground.teacher.decoder, copy.deepcopy(trunk.decoder), trunk.masks()
    rounded = RoundedStudent(student, method.dtype, method.tables)
    if masks is not None:
        rounded.check_keeps(masks)
    lesson = _lesson(ground, lesson_steps, seed, text=False)
    lesson = dataclasses.replace(
        lesson, fit=dataclasses.replace(lesson.fit, **ROUNDED_FIT), loss=ROUNDED_LOSS
    )
    result = distill(
        [teacher],
        student,
        lesson,
        folder / f"round-{method.dtype}",
        masks=masks,
        stand_in=rounded.weights,
        progress=ground.progress,
        resume=True,
    )
    made = rounded.finish(teacher, lesson)
    report = rounded.plan.report(method, trunk.decoder, "trained rounded", made.notes())
    return Rounded(made.stored, report, result.tokens, result.elapsed_s)


def _by_text(ground: Ground) -> Calibrate:
    return lambda method, decoder: method.calibrate(decoder, ground.batches)


def _stepped(
    ground: Ground, step: Step, decoder: Decoder, seed: int, calibrate: Calibrate
) -> tuple[Decoder, Report | None]:
    if step.method == STUDENT:
        student = Decoder(scaled(ground.teacher.decoder.config, step.values["ratio"]))
        student.initialise(seed)
        return student, None
    method = step.build()
    statistics = calibrate(method, decoder) if method.needs_calibration else None
    made, report = method.apply(decoder, statistics)
    return made, report


def _lesson(ground: Ground, steps: int, seed: int, *, text: bool) -> Lesson:
    """Returns what is learned: from the teacher, or with `text` from the text alone."""
    settings = ground.job.settings
    loss = DistillSettings((TextTerm(),)) if text else settings.loss
    return Lesson(ground.train, settings.fit(steps, seed), loss, ground.rows)


def _learn(
    ground: Ground, decoder: Decoder, run: Path, lesson: Lesson, *, sparse: bool
) -> tuple[int, float]:
    """Trains in place; returns tokens and seconds, those of earlier sittings counted."""
    result = distill(
        [ground.teacher.decoder],  # not asked where the text alone teaches
        decoder,
        lesson,
        run,
        masks=Masks.of(decoder) if sparse else None,
        progress=ground.progress,
        resume=True,
    )
    return result.tokens, result.elapsed_s


def _made(folder: Path, *, sparse: bool) -> Trunk:
    values = read_json(folder / "made.json", remedy=DELETE)
    decoder = open_decoder(folder / "trunk.gguf", "trunk").decoder
    return Trunk(decoder, values["tokens"], values["seconds"], tuple(values["notes"]), sparse)
