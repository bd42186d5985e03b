"""Teaching: a student learns a text from its teacher.

For: distillation from nothing, and recovery after pruning, which differ in the student alone.
Not for: the loss (`miudo.compress.distill.loss`) or the loop (`miudo.train.loop`).
Read next: `miudo.train.loop`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from miudo.compress.distill.loss import DistillLoss
from miudo.compress.distill.terms import DistillSettings
from miudo.compress.method import check_finite
from miudo.decoder.decoder import Decoder
from miudo.decoder.sparsity import Masks
from miudo.errors import ConfigError
from miudo.train.loop import FitResult, fit
from miudo.train.loss import Loss
from miudo.train.progress import Progress
from miudo.train.run_folder import RunFolder
from miudo.train.settings import FitSettings
from miudo.train.stepper import StandIn, Tokens

__all__ = ["Lesson", "check_positions", "distill"]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is taught (`data`, and `held_out` to measure by), for how long, and by which loss.

    `loss` describes one over the text with the teachers in memory, or is one that asks them
    otherwise (`miudo.compress.distill.ways`).
    """

    data: Tokens
    fit: FitSettings
    loss: DistillSettings | Loss = field(default_factory=DistillSettings)
    held_out: Tokens | None = None


def distill(  # noqa: PLR0913 - who teaches whom what, and who watches; each has a default
    teachers: Sequence[Decoder],
    student: Decoder,
    lesson: Lesson,
    out: Path | RunFolder,
    *,
    surviving: Sequence[int] | None = None,
    masks: Masks | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    stand_in: StandIn | None = None,
) -> FitResult:
    """Trains `student` in place on what its teachers show, with its run in `out`.

    `surviving` says which of the teacher's layers the student's were, if it is made of them.
    What `masks` say is zero in the student stays zero. With a `stand_in` the student learns while
    its values are in the weights' place.

    The held-out loss is plain cross-entropy, comparable with any model's. Raises ConfigError
    for blocks longer than a teacher reads, CheckFailedError for a student that holds NaN, and
    what `DistillLoss` and `fit` raise.
    """
    loss = lesson.loss
    if isinstance(loss, DistillSettings):
        check_positions(teachers, lesson.fit)
        loss = DistillLoss(
            teachers, student.config, loss, seed=lesson.fit.seed, surviving=surviving
        )
    check_finite(student)
    homes = [teacher.embed.weight.device for teacher in teachers]
    try:
        return fit(
            student,
            lesson.data,
            lesson.fit,
            out,
            loss=loss,
            masks=masks,
            held_out=lesson.held_out,
            progress=progress,
            resume=resume,
            stand_in=stand_in,
        )
    finally:  # the loss took them to where the student learned
        for teacher, home in zip(teachers, homes, strict=True):
            teacher.to(home)


def check_positions(teachers: Sequence[Decoder], fit: FitSettings) -> None:
    """Raises ConfigError for blocks longer than a teacher reads."""
    positions = min(teacher.config.max_positions for teacher in teachers)
    if fit.length > positions:
        raise ConfigError(
            f"length is {fit.length}, the teacher has {positions} positions",
            remedy=f"Give --length {positions} or less",
        )
