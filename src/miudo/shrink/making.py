"""A trunk made: cut, taught, cut again, as its steps say; then rounded.

For: candidates and controls, whose steps differ and whose making does not.
Not for: which are made and for how long (`miudo.shrink.search`).
Read next: `miudo.shrink.controls`.

    FOLDER/learn-1/    a training run, gone on with after a stop; its checkpoints go in the end
    FOLDER/trunk.gguf  the decoder in float32
    FOLDER/made.json   tokens, seconds, notes

A trunk that learns nothing leaves nothing: it is made again when it is wanted.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.compress.distill.lesson import Lesson, distill
from miudo.compress.distill.response import ResponseSettings
from miudo.compress.distill.student import scaled
from miudo.compress.method import Method, Quantizer, Report
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError
from miudo.files import write_json
from miudo.formats.gguf import write_gguf
from miudo.shrink.candidates import LEARN, STUDENT, Step
from miudo.shrink.ground import Ground
from miudo.shrink.reading import read_json
from miudo.shrink.stored import model_file
from miudo.tensors import Weights
from miudo.train.artefact import open_decoder
from miudo.train.loop import fit

__all__ = ["Calibrate", "Trunk", "cut", "make_trunk", "round_trunk"]

Calibrate = Callable[[Method, Decoder], Any]
"""Gives a method its statistics of a decoder."""


@dataclass(frozen=True, slots=True)
class Trunk:
    """The decoder, what it learned from and how long, in all sittings, making it took."""

    decoder: Decoder
    tokens: int
    seconds: float
    notes: tuple[str, ...]


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
    n_steps: int,
    *,
    seed: int,
    start: Decoder | None = None,
    calibrate: Calibrate | None = None,
) -> Trunk:
    """Returns the decoder after `steps`, its LEARN steps sharing `n_steps`; from `folder` if there.

    It begins as the teacher, or as `start`. A stop leaves a state that the same call goes on from.
    """
    if (folder / "made.json").exists():
        return _made(folder)
    decoder = ground.teacher.decoder if start is None else start
    learns = sum(step.method == LEARN for step in steps)
    tokens, seconds, number = 0, 0.0, 0
    notes: list[str] = []
    begun = time.perf_counter()
    for step in steps:
        if step.method != LEARN:
            statistics = calibrate or _by_text(ground)
            decoder, report = _stepped(ground, step, decoder, seed, statistics)
            notes += [] if report is None else report.notes
            continue
        number += 1
        share = max(1, n_steps // learns)
        seconds += time.perf_counter() - begun
        run = folder / f"learn-{number}"
        learned, elapsed_s = _learn(ground, step, decoder, run, share, seed)
        tokens, seconds = tokens + learned, seconds + elapsed_s
        begun = time.perf_counter()
    if not learns:  # made again sooner than read
        return Trunk(decoder, 0, time.perf_counter() - begun, tuple(notes))
    model = model_file(ground.teacher, decoder.config, decoder.to_weights(), None)
    write_gguf(folder / "trunk.gguf", model)
    seconds += time.perf_counter() - begun
    made = {"schema": 1, "tokens": tokens, "seconds": round(seconds, 3), "notes": notes}
    write_json(folder / "made.json", made)
    for run in folder.glob("learn-*"):
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return Trunk(decoder, tokens, seconds, tuple(notes))


def round_trunk(ground: Ground, step: Step, decoder: Decoder) -> tuple[Weights, Report]:
    """Returns `decoder` as the file holds it. Raises ConfigError for a step that stores nothing."""
    method = step.build()
    if not isinstance(method, Quantizer):
        raise ConfigError(f"{step.method} does not round", remedy="Give a rounding method last")
    statistics = _by_text(ground)(method, decoder) if method.needs_calibration else None
    return method.store(decoder, statistics)


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


def _learn(
    ground: Ground, step: Step, decoder: Decoder, run: Path, n_steps: int, seed: int
) -> tuple[int, float]:
    """Trains in place; returns tokens and seconds, those of earlier sittings counted."""
    settings = ground.job.settings
    lesson = Lesson(
        ground.train,
        settings.fit(n_steps, seed),
        ResponseSettings(settings.temperature, settings.alpha),
        ground.rows,
    )
    if decoder is ground.teacher.decoder:
        raise ConfigError("the teacher itself cannot learn", remedy="Cut it first")
    if step.values.get("loss") == "text":
        result = fit(
            decoder,
            lesson.data,
            lesson.fit,
            run,
            held_out=lesson.held_out,
            progress=ground.progress,
            resume=True,
        )
    else:
        result = distill(
            ground.teacher.decoder, decoder, lesson, run, progress=ground.progress, resume=True
        )
    return result.tokens, result.elapsed_s


def _made(folder: Path) -> Trunk:
    values = read_json(folder / "made.json")
    decoder = open_decoder(folder / "trunk.gguf", "trunk").decoder
    return Trunk(decoder, values["tokens"], values["seconds"], tuple(values["notes"]))
