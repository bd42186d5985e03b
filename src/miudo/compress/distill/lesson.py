"""Teaching: a student learns a text from its teacher.

For: distillation from nothing, and recovery after pruning, which differ in the student alone.
Not for: the loss (`miudo.compress.distill.response`) or the loop (`miudo.train.loop`).
Read next: `miudo.train.loop`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from miudo.compress.distill.response import (
    ResponseLoss,
    ResponseSettings,
    check_same_vocabulary,
)
from miudo.compress.method import check_finite
from miudo.decoder.decoder import Decoder
from miudo.decoder.sparsity import Masks
from miudo.errors import ConfigError
from miudo.train.loop import FitResult, fit
from miudo.train.progress import Progress
from miudo.train.run_folder import RunFolder
from miudo.train.settings import FitSettings
from miudo.train.stepper import StandIn, Tokens

__all__ = ["Lesson", "distill"]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is taught (`data`, and `held_out` to measure by), for how long, and by which loss."""

    data: Tokens
    fit: FitSettings
    response: ResponseSettings = field(default_factory=ResponseSettings)
    held_out: Tokens | None = None


def distill(
    teacher: Decoder,
    student: Decoder,
    lesson: Lesson,
    out: Path | RunFolder,
    *,
    masks: Masks | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    stand_in: StandIn | None = None,
) -> FitResult:
    """Trains `student` in place on the teacher's distributions, with its run in `out`.

    With a `stand_in` the student learns while its values are in the weights' place.
    What `masks` say is zero in the student stays zero.

    The held-out loss is plain cross-entropy, comparable with any model's. Raises ConfigError
    for different vocabularies or blocks longer than the teacher reads, CheckFailedError for
    a teacher or student that holds NaN, and what `fit` raises.
    """
    check_same_vocabulary(teacher.config, student.config)
    check_finite(student)
    if lesson.fit.length > teacher.config.max_positions:
        raise ConfigError(
            f"length is {lesson.fit.length}, the teacher has {teacher.config.max_positions} "
            "positions",
            remedy=f"Give --length {teacher.config.max_positions} or less",
        )
    return fit(
        student,
        lesson.data,
        lesson.fit,
        out,
        loss=ResponseLoss(teacher, lesson.response),
        masks=masks,
        held_out=lesson.held_out,
        progress=progress,
        resume=resume,
        stand_in=stand_in,
    )
