"""Response distillation as one method among others: a fresh, smaller student.

For: planners and chains that treat every method alike; the statistics are the text itself.
Not for: long runs that must survive an interruption (`miudo.compress.verbs.run_distill`).
Read next: `miudo.compress.distill.lesson`.

Shapes: B batch, T positions.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from miudo.compress.distill.divergence import ALPHA, TEMPERATURE, Divergence
from miudo.compress.distill.lesson import Lesson, distill
from miudo.compress.distill.student import scaled
from miudo.compress.distill.terms import DistillSettings
from miudo.compress.method import Report, check_finite, check_seen, describe, in_range
from miudo.decoder.decoder import Decoder
from miudo.errors import DataError
from miudo.philox import Orders
from miudo.train.settings import FitSettings

__all__ = ["HeldText", "ResponseDistillation", "held_text"]

_IdArray = npt.NDArray[np.int32]


class HeldText:
    """Token blocks in memory, read by training as `miudo.train.stepper.Tokens`.

    `rows` is int32 [n, T + 1]; blocks of any other length than T are refused.
    """

    def __init__(self, rows: _IdArray) -> None:
        self.rows = rows
        self._orders = Orders()
        self.sha256 = hashlib.sha256(rows.tobytes()).hexdigest()

    @property
    def length(self) -> int:
        """T, the positions that a block predicts."""
        return int(self.rows.shape[1]) - 1

    def n_blocks(self, length: int) -> int:
        """Returns how many blocks there are of this length."""
        return len(self.rows) if length == self.length else 0

    def block(self, index: int, length: int) -> _IdArray:
        """Returns ids [T + 1]. Raises DataError for another length than T."""
        if length != self.length:
            raise DataError(f"holds blocks of {self.length} tokens, not of {length}")
        block: _IdArray = self.rows[index]
        return block

    def batch(self, seed: int, step: int, batch_size: int, length: int) -> _IdArray:
        """Returns ids [batch_size, T + 1], each epoch in another order."""
        places = range(step * batch_size, (step + 1) * batch_size)
        n = len(self.rows)
        order = self._orders.of
        return np.stack([self.block(int(order(seed, p // n, n)[p % n]), length) for p in places])


def held_text(method: str, decoder: Decoder, batches: Iterable[Tensor]) -> HeldText:
    """Returns ids [B, T + 1] as the text that `method` lets `decoder` learn from.

    Raises DataError if there is no row of at least two ids, or rows of unequal length,
    CheckFailedError for a decoder that holds NaN.
    """
    check_finite(decoder)
    seen = [ids.cpu().numpy().astype(np.int32) for ids in batches if len(ids)]
    check_seen(method, sum(ids.size for ids in seen))
    lengths = {ids.shape[1] for ids in seen}
    if len(lengths) > 1 or min(lengths) < 2:
        raise DataError(
            f"rows of {sorted(lengths)} ids",
            where=method,
            remedy="Give rows of one length, of at least 2 ids",
        )
    return HeldText(np.concatenate(seen))


@dataclass(frozen=True, slots=True)
class ResponseDistillation:
    """Trains a student of `ratio` of the teacher's non-embedding parameters for `steps`.

    `loss`, `temperature` and `alpha` are those of `DistillSettings.of`. Raises ConfigError for
    a value out of range.
    """

    name: ClassVar[str] = "response"
    needs_calibration: ClassVar[bool] = True

    ratio: float = 0.25
    steps: int = 1000
    batch_size: int = 16
    loss: Divergence = Divergence.FORWARD_KL
    temperature: float = TEMPERATURE
    alpha: float = ALPHA
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("ratio", self.ratio, 1e-4, 1.0)
        in_range("steps", self.steps, 1, 1 << 32, whole=True)
        in_range("batch_size", self.batch_size, 1, 1 << 20, whole=True)
        in_range("seed", self.seed, 0, (1 << 64) - 1, whole=True)
        self._terms()

    def calibrate(self, decoder: Decoder, batches: Iterable[Tensor]) -> HeldText:
        """Returns the text to learn from: ids [B, T + 1], all of one length.

        Raises DataError if there is no row of at least two ids, or rows of unequal length.
        """
        return held_text(self.name, decoder, batches)

    def apply(self, decoder: Decoder, statistics: HeldText | None = None) -> tuple[Decoder, Report]:
        """Returns the trained student, and the report. Raises what `distill` raises."""
        if statistics is None:
            raise DataError("needs calibration", where=self.name, remedy="Call calibrate first")
        check_seen(self.name, statistics.rows.size)
        student = Decoder(scaled(decoder.config, self.ratio))
        student.initialise(self.seed)
        fit = FitSettings(
            steps=self.steps,
            batch_size=min(self.batch_size, len(statistics.rows)),
            length=statistics.length,
            seed=self.seed,
            save_every=0,
        )
        lesson = Lesson(statistics, fit, self._terms())
        with tempfile.TemporaryDirectory(prefix="miudo-") as folder:
            result = distill([decoder], student, lesson, Path(folder))
        report = describe(
            self,
            decoder.config,
            student.config,
            reasons={"": "the student is another, smaller model"},
            notes=(f"{result.tokens} tokens learned from {statistics.rows.size} given",),
        )
        return student, report

    def _terms(self) -> DistillSettings:
        return DistillSettings.of(self.loss, temperature=self.temperature, alpha=self.alpha)
