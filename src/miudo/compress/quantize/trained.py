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
import dataclasses
import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from miudo.compress.distill.lesson import Lesson, distill
from miudo.compress.distill.loss import DistillLoss
from miudo.compress.distill.method import HeldText, held_text
from miudo.compress.distill.terms import DistillSettings, ResponseTerm
from miudo.compress.method import Report, check_finite, check_seen, in_range
from miudo.compress.quantize.plan import Plan, rounded_decoder
from miudo.decoder.decoder import Decoder
from miudo.decoder.grids import check_trainable, holds_zero
from miudo.decoder.rounded import RoundedWeights
from miudo.decoder.sparsity import Masks
from miudo.engine.native import NativeEngine
from miudo.errors import CheckFailedError, ConfigError, DataError
from miudo.formats import open_model
from miudo.formats.blocks import CODECS, encode, to_f32
from miudo.formats.sparse import as_dense
from miudo.protocol import SeqWork, Want
from miudo.records import Measurement
from miudo.tensors import DType, StoredTensor, Weights
from miudo.train.settings import FitSettings
from miudo.train.stepper import Tokens

__all__ = [
    "ROUNDED_FIT",
    "ROUNDED_LOSS",
    "RoundedStudent",
    "Trained",
    "TrainedRounding",
    "check_engine",
    "mean_kl",
]

ROUNDED_FIT: dict[str, Any] = {"optimizer": "adamw", "lr": 3e-4, "weight_decay": 0.0}
"""Training settings for weights that are only to be rounded better.

Decay would pull weights to 0 that are as large as they should be.
"""
ROUNDED_LOSS = DistillSettings((ResponseTerm(),))
"""The loss: the KL to the unrounded model at temperature 1, nothing else."""

_SAME_LOGITS = 1e-4
_MEASURED_TOKENS = 16_384
_ROWS = 8


@dataclass(frozen=True, slots=True)
class Trained:
    """The file's tensors, and what they cost.

    `kl_before` is that of rounding alone, `kl_after` that of what was trained, both in nats a
    token against the unrounded model.
    """

    stored: Weights
    kl_before: float
    kl_after: float

    @property
    def kept(self) -> bool:
        """Whether `stored` is what was trained: it is no worse than rounding alone."""
        return self.kl_after < self.kl_before

    @property
    def bits_per_weight(self) -> float:
        """Bits of a parameter, scales included."""
        size = sum(tensor.data.nbytes for tensor in self.stored.values())
        return 8.0 * size / sum(math.prod(tensor.shape) for tensor in self.stored.values())

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


class RoundedStudent:
    """A student that is trained in place, its matrices shown as `dtype`, its tables as `tables`.

    Tables are the token table and the head. Scales begin as in `start`, what the student's file
    was, where a tensor is of the right type already (GPTQ's, say, whose scales a new search would
    lose); else as `formats.blocks.encode` finds them. Raises ConfigError for a type that training
    cannot round to.
    """

    def __init__(
        self, student: Decoder, dtype: DType, tables: DType, start: Weights | None = None
    ) -> None:
        check_trainable("dtype", dtype)
        check_trainable("tables", tables)
        self.student = student
        self.settings = {"dtype": dtype.value, "tables": tables.value}
        self.plan = Plan.of(student, dtype, tables)
        held = student.to_weights() if start is None else start
        self.begun = {name: _as(held[name], kind) for name, kind in self.plan.dtypes.items()}
        """What the file would hold without training."""
        self.weights = RoundedWeights(student, self.begun)

    def check_keeps(self, masks: Masks) -> None:
        """Raises ConfigError naming a sparse matrix whose type has no exact zero."""
        for name in masks.live:
            dtype = self.plan.dtypes[name]
            if dtype in CODECS and not holds_zero(dtype):
                raise ConfigError(
                    f"{name} is sparse, and {dtype} has no exact zero",
                    remedy="Give a type without offsets (Q4_0, Q3_K, TQ2_0), or --free-zeros",
                )

    def finish(
        self, teacher: Decoder, lesson: Lesson, *, shared_vocab: int | None = None
    ) -> Trained:
        """Returns what a file gets once the student is trained.

        Both divergences are measured on held-out text, where the lesson has some, else on the
        text itself, over the first `shared_vocab` ids; rounding alone is kept where it is no
        worse. Raises CheckFailedError if the file's values are not, to the bit, those that the
        training saw.
        """
        trained = self.weights.store()
        text = lesson.data if lesson.held_out is None else lesson.held_out
        before, after = (
            mean_kl(
                teacher,
                rounded_decoder(self.student, stored),
                text,
                lesson.fit.length,
                shared_vocab=shared_vocab,
            )
            for stored in (self.begun, trained)
        )
        return Trained(trained if after < before else self.begun, before, after)


def _as(tensor: StoredTensor, dtype: DType) -> StoredTensor:
    tensor = as_dense(tensor)
    if tensor.dtype is dtype:  # a copy: a file's memory map may go away
        return StoredTensor(dtype, tensor.shape, np.array(tensor.data))
    return encode(to_f32(tensor), dtype)


@torch.no_grad()
def mean_kl(
    teacher: Decoder,
    student: Decoder,
    text: Tokens,
    length: int,
    *,
    shared_vocab: int | None = None,
) -> float:
    """Returns the mean KL of student to teacher in nats a token, over blocks spread over `text`.

    `shared_vocab` is how many ids both know, where one of them pads its vocabulary.
    """
    settings = dataclasses.replace(ROUNDED_LOSS, shared_vocab=shared_vocab)
    loss = DistillLoss([teacher], student.config, settings)
    there = text.n_blocks(length)
    count = max(1, min(there, _MEASURED_TOKENS // length))
    blocks = np.stack([text.block(i * there // count, length) for i in range(count)])
    parts = torch.split(torch.from_numpy(blocks), _ROWS)
    sums = [float(loss(student, ids)[0]) * len(ids) for ids in parts]
    return sum(sums) / count


@torch.no_grad()
def check_engine(path: Path, ids: Sequence[int]) -> float:
    """Returns by how much the engine's logits for `ids` differ from the decoder's, at most.

    Both read the file at `path`; the engine's activations are float. Raises CheckFailedError
    beyond 1e-4.
    """
    file = open_model(path)
    decoder = Decoder.from_weights(file.config, file.weights)
    expected = decoder.logits(decoder(torch.tensor([list(ids)])))[0].numpy()  # T V
    engine = NativeEngine(file, activations="float")
    work = SeqWork(conversation=engine.open(), ids=list(ids), want=Want.ALL_LOGITS)
    logits = engine.step([work])[0].logits
    worst = float("inf") if logits is None else float(np.abs(logits - expected).max())
    if not worst <= _SAME_LOGITS:
        raise CheckFailedError(
            f"the engine's logits differ from the trained decoder's by {worst:.2g}",
            where=path,
            remedy=f"Report this: {_SAME_LOGITS:g} is the most that sums in another order make",
        )
    return worst


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
        student = copy.deepcopy(decoder)
        rounded = RoundedStudent(student, self.dtype, self.tables)
        fit = FitSettings(
            steps=self.steps,
            batch_size=min(self.batch_size, len(statistics.rows)),
            length=statistics.length,
            seed=self.seed,
            save_every=0,
            **{**ROUNDED_FIT, "lr": self.lr},
        )
        lesson = Lesson(statistics, fit, ROUNDED_LOSS)
        masks = Masks.of(student)
        with tempfile.TemporaryDirectory(prefix="miudo-") as folder:
            result = distill(
                [decoder],
                student,
                lesson,
                Path(folder),
                masks=masks if masks.live else None,
                stand_in=rounded.weights,
            )
        made = rounded.finish(decoder, lesson)
        notes = (f"{result.tokens} tokens learned from {statistics.rows.size} given",)
        return made.stored, rounded.plan.report(
            self, decoder, "trained rounded", (*notes, *made.notes())
        )
