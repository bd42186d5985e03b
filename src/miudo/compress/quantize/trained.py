"""Quantisation-aware distillation: weights trained to be rounded, taught by the unrounded model.

For: 4, 3 and 2 bits a weight and ternary ones, where rounding alone costs too much. The student
is the model itself; its forward pass computes with what the file will hold, the loss is the KL to
the model as it was (Liu et al. 2024, LLM-QAT; Esser et al. 2020, LSQ, for the scales).
Not for: rounding in seconds (`miudo.compress.quantize.nearest`, `gptq`), or runs that must survive
an interruption (`miudo.compress.verbs.run_distill`).
Read next: `miudo.decoder.rounded`, which does the rounding.

Shapes: B batch, T positions.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from miudo.compress.distill.lesson import Lesson, distill
from miudo.compress.distill.method import HeldText, held_text
from miudo.compress.distill.response import ResponseLoss, ResponseSettings
from miudo.compress.method import Report, check_finite, check_seen, in_range
from miudo.compress.quantize.plan import Plan, rounded_decoder
from miudo.decoder.decoder import Decoder
from miudo.decoder.grids import check_trainable
from miudo.decoder.rounded import RoundedWeights
from miudo.errors import DataError
from miudo.formats.blocks import encode, to_f32
from miudo.records import Measurement
from miudo.tensors import DType, Role, Weights, tensor_table
from miudo.train.loop import FitResult
from miudo.train.progress import Progress
from miudo.train.run_folder import RunFolder
from miudo.train.settings import FitSettings, Optimizer
from miudo.train.stepper import Tokens

__all__ = [
    "ROUNDED_FIT",
    "ROUNDED_RESPONSE",
    "Trained",
    "TrainedRounding",
    "mean_kl",
    "plan_of",
    "train_rounded",
]

ROUNDED_FIT: dict[str, Any] = {"optimizer": "adamw", "lr": 3e-4, "weight_decay": 0.0}
"""Training settings that weights which are only to be rounded better are trained with.

Decay would pull weights to 0 that are as large as they should be.
"""
ROUNDED_RESPONSE = ResponseSettings(temperature=1.0, alpha=1.0)
"""The loss: the KL to the unrounded model, nothing else."""

_MEASURED_TOKENS = 16_384
_ROWS = 8


@dataclass(frozen=True, slots=True)
class Trained:
    """The file's tensors, what they cost, and how the training ended.

    `kl_before` is that of rounding alone, `kl_after` that of what was trained, both in nats a
    token against the unrounded model. `kept` is False where rounding alone was the better.
    """

    stored: Weights
    plan: Plan
    fit: FitResult
    kl_before: float
    kl_after: float

    @property
    def kept(self) -> bool:
        """Whether `stored` is what was trained."""
        return self.kl_after < self.kl_before

    def notes(self) -> tuple[str, ...]:
        """Returns what a report says of it."""
        found = f"KL {self.kl_before:.5f} nats a token rounded, {self.kl_after:.5f} trained"
        return (found,) if self.kept else (found, "training did not help: rounding alone was kept")

    def measurements(self) -> list[Measurement]:
        """Returns the two divergences as a record keeps them."""
        method = f"to the unrounded model, float32, up to {_MEASURED_TOKENS} tokens, evenly spaced"
        return [
            Measurement("kl_rounded", self.kl_before, "nats/token", method),
            Measurement("kl_trained", self.kl_after, "nats/token", method),
        ]


def plan_of(decoder: Decoder, dtype: DType, tables: DType) -> Plan:
    """Returns the types of a file: `tables` for the token table and the head, else `dtype`."""
    wanted = {
        spec.name: tables if spec.role in (Role.EMBED, Role.HEAD) else dtype
        for spec in tensor_table(decoder.config)
    }
    return Plan.of(decoder, wanted)


def train_rounded(
    teacher: Decoder,
    student: Decoder,
    plan: Plan,
    lesson: Lesson,
    out: Path | RunFolder,
    *,
    progress: Progress | None = None,
    resume: bool = False,
) -> Trained:
    """Trains `student` in place to give `teacher`'s distributions when rounded as `plan` says.

    Scales begin as `formats.blocks.encode` finds them. The divergences are measured on held-out
    text, where the lesson has some, else on the text itself; rounding alone is kept where it is
    no worse. Raises CheckFailedError if the file's values are not, to the bit, those that the
    training saw, and what `distill` raises.
    """
    begun = {name: encode(to_f32(t), plan.dtypes[name]) for name, t in student.to_weights().items()}
    rounded = RoundedWeights(student, begun)
    fit = distill(
        teacher, student, lesson, out, progress=progress, resume=resume, stand_in=rounded
    )
    student.to("cpu")
    rounded.to("cpu")
    teacher.to("cpu")
    trained = rounded.store()
    text = lesson.held_out or lesson.data
    before, after = (
        mean_kl(teacher, rounded_decoder(student, stored), text, lesson.fit.length)
        for stored in (begun, trained)
    )
    return Trained(trained if after < before else begun, plan, fit, before, after)


@torch.no_grad()
def mean_kl(teacher: Decoder, student: Decoder, text: Tokens, length: int) -> float:
    """Returns the mean KL of student to teacher in nats a token, over blocks spread over `text`."""
    loss = ResponseLoss(teacher, ROUNDED_RESPONSE)
    there = text.n_blocks(length)
    count = max(1, min(there, _MEASURED_TOKENS // length))
    blocks = np.stack([text.block(i * there // count, length) for i in range(count)])
    parts = torch.from_numpy(blocks).split(_ROWS)
    sums = [float(loss(student, ids)[0]) * len(ids) for ids in parts]
    return sum(sums) / count


@dataclass(frozen=True, slots=True)
class TrainedRounding:
    """Stores matrices as `dtype`, token table and head as `tables`, after `steps` of training.

    `lr` is AdamW's, for weights and for the logarithms of scales. Raises ConfigError for a type
    that training cannot round to or a value out of range.
    """

    name: ClassVar[str] = "trained"
    needs_calibration: ClassVar[bool] = True

    dtype: DType = DType.Q4_0
    tables: DType = DType.Q8_0
    steps: int = 500
    batch_size: int = 16
    lr: float = 3e-4
    seed: int = 0

    def __post_init__(self) -> None:
        check_trainable("dtype", self.dtype)
        check_trainable("tables", self.tables)
        in_range("steps", self.steps, 1, 1 << 32, whole=True)
        in_range("batch_size", self.batch_size, 1, 1 << 20, whole=True)
        in_range("lr", self.lr, 0.0, 1.0)
        in_range("seed", self.seed, 0, (1 << 64) - 1, whole=True)

    def calibrate(self, decoder: Decoder, batches: Iterable[Tensor]) -> HeldText:
        """Returns the text to learn from: ids [B, T + 1], all of one length.

        Raises DataError if there is no row of at least two ids, or rows of unequal length.
        """
        return held_text(self.name, decoder, batches)

    def apply(self, decoder: Decoder, statistics: HeldText | None = None) -> tuple[Decoder, Report]:
        """Returns the decoder with the weights that the file will hold, and the report."""
        stored, report = self.store(decoder, statistics)
        return rounded_decoder(decoder, stored), report

    def store(self, decoder: Decoder, statistics: HeldText | None = None) -> tuple[Weights, Report]:
        """Returns the file's tensors, and the report. Raises what `train_rounded` raises."""
        if statistics is None:
            raise DataError("needs calibration", where=self.name, remedy="Call calibrate first")
        check_seen(self.name, statistics.rows.size)
        check_finite(decoder)
        plan = plan_of(decoder, self.dtype, self.tables)
        fit = FitSettings(
            steps=self.steps,
            batch_size=min(self.batch_size, len(statistics.rows)),
            length=statistics.length,
            optimizer=Optimizer.ADAMW,
            lr=self.lr,
            weight_decay=0.0,
            seed=self.seed,
            save_every=0,
        )
        lesson = Lesson(statistics, fit, ROUNDED_RESPONSE)
        with tempfile.TemporaryDirectory(prefix="miudo-") as folder:
            made = train_rounded(decoder, copy.deepcopy(decoder), plan, lesson, Path(folder))
        notes = (f"{made.fit.tokens} tokens learned from {statistics.rows.size} given",)
        return made.stored, plan.report(self, decoder, "trained rounded", (*notes, *made.notes()))
