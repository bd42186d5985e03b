"""One training step: batches in, gradients summed, clipped, checked, applied.

For: everything that happens between two states of the weights.
Not for: how many steps, when to save or evaluate (`miudo.train.loop`).
Read next: `miudo.train.optimizer`.

Shapes: B batch_size, T length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from miudo.decoder.decoder import Decoder
from miudo.decoder.sparsity import Masks
from miudo.errors import ConfigError, DataError, ResourceError, TrainingError
from miudo.train.loss import Learning, Loss, Marks, Scheduled, compiled
from miudo.train.optimizer import Optimizers
from miudo.train.plan import Plan, lr_scale
from miudo.train.settings import LOWER_RATE, FitSettings, Precision

__all__ = [
    "MarkedTokens",
    "StandIn",
    "StepResult",
    "Stepper",
    "Tokens",
    "check_trainable",
    "loss_of",
]


_MarkArrays = tuple[npt.NDArray[np.bool_], npt.NDArray[np.int32]]


class Tokens(Protocol):
    """What training reads of a data set; `miudo.data.packed.PackedTokens` is one."""

    @property
    def sha256(self) -> str:
        """Hash of what the tokens were made from, and how."""
        ...

    def n_blocks(self, length: int) -> int:
        """Returns how many blocks of `length` + 1 ids there are."""
        ...

    def block(self, index: int, length: int) -> npt.NDArray[np.int32]:
        """Returns ids [length + 1]."""
        ...

    def batch(self, seed: int, step: int, batch_size: int, length: int) -> npt.NDArray[np.int32]:
        """Returns ids [batch_size, length + 1]: a function of the arguments alone."""
        ...


@runtime_checkable
class MarkedTokens(Tokens, Protocol):
    """Samples in rows: what `Tokens` gives, and which targets count and what lies together.

    Both give (counted bool [..., T], segments int32 [..., T]) as `miudo.train.loss.Marks` has
    them, for the block or batch of the same arguments. `miudo.data.samples.PackedSamples` is one.
    """

    def block_marks(self, index: int, length: int) -> _MarkArrays:
        """Returns the marks of a block."""
        ...

    def batch_marks(self, seed: int, step: int, batch_size: int, length: int) -> _MarkArrays:
        """Returns the marks of a batch."""
        ...


class StandIn(Protocol):
    """Other values in the weights' place while a step computes, as a file will hold them.

    `miudo.decoder.rounded.RoundedWeights` is one.
    """

    @property
    def learned(self) -> Mapping[str, nn.Parameter]:
        """What is trained beside the weights, by name."""
        ...

    def to(self, device: torch.device | str) -> None:
        """Moves what it holds to where the weights are."""
        ...

    def shown(self) -> AbstractContextManager[None]:
        """Inside, the decoder's parameters are those other values."""
        ...

    def share_gradients(self, done: float) -> None:
        """Makes of the gradients of what was shown those of the weights and of `learned`.

        `done` is the share of the run's steps that are taken.
        """
        ...


@dataclass(frozen=True, slots=True)
class StepResult:
    """`applied` is False where loss or gradient was not finite: the weights did not move."""

    loss: float
    norm: float
    applied: bool
    parts: dict[str, float] = field(default_factory=dict)


class Stepper:
    """Takes steps on `decoder`'s own weights, and on those of a loss that learns.

    What `masks` say is zero stays zero. With a `stand_in` gradients are those at its values.
    """

    def __init__(
        self,
        decoder: Decoder,
        data: Tokens,
        settings: FitSettings,
        loss: Loss,
        masks: Masks | None = None,
        stand_in: StandIn | None = None,
    ) -> None:
        self.decoder, self.data, self.settings, self.loss = decoder, data, settings, loss
        self.device = decoder.embed.weight.device
        self.masks = None if masks is None else masks.to(self.device)
        self.beside = loss.learned if isinstance(loss, Learning) else nn.Module()
        self.beside.to(self.device)
        extra = {f"loss.{name}": p for name, p in self.beside.named_parameters()}
        self.stand_in = stand_in
        if stand_in is not None:
            stand_in.to(self.device)
            extra |= stand_in.learned
        self.optimizers = Optimizers(decoder, settings, extra)

    def shown(self) -> AbstractContextManager[None]:
        """Inside, the decoder has the weights that it will be used with."""
        return nullcontext() if self.stand_in is None else self.stand_in.shown()

    def weights(self) -> dict[str, Tensor]:
        """Returns all that steps change, moments aside: parameters, and a loss's buffers."""
        kept = {f"loss.{name}": buffer for name, buffer in self.beside.named_buffers()}
        return {**self.optimizers.named, **kept}

    @property
    def zeros(self) -> dict[str, int]:
        """How many weights of each sparse matrix are kept at zero."""
        return {} if self.masks is None else self.masks.zeros()

    def take(self, step: int, plan: Plan) -> StepResult:
        """Takes `step` (from 0). Raises TrainingError where weights are no longer finite."""
        try:
            with self.shown():
                value, parts = self._gradients(step, plan)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            raise ResourceError(
                f"too little memory for {self.settings.batch_size} rows of "
                f"{self.settings.length} tokens",
                where="batch_size, length",
                remedy="Start a new run with half of --batch-size and twice accumulate, or with "
                "checkpoint_activations",
            ) from error
        if self.stand_in is not None:
            self.stand_in.share_gradients(step / plan.steps)
        parameters = self.optimizers.parameters
        if self.masks is not None:
            self.masks.zero_gradients(self.optimizers.named)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip))
        if not (math.isfinite(value) and math.isfinite(norm)):
            self.optimizers.forget_gradients()
            return StepResult(value, norm, applied=False, parts=parts)
        self.optimizers.step(lr_scale(self.settings, plan.steps, step))
        if self.masks is not None:
            self.masks.put_back(self.optimizers.named)
        with torch.no_grad():
            size = float(torch.nn.utils.get_total_norm(parameters))
        if not math.isfinite(size):
            raise TrainingError(
                "weights are not finite after this step",
                where=f"step {step + 1}",
                remedy=LOWER_RATE,
            )
        return StepResult(value, norm, applied=True, parts=parts)

    def rehearse(self, plan: Plan) -> None:
        """Computes the first step's gradients and forgets them, so that all is compiled."""
        buffers = {name: buffer.clone() for name, buffer in self.beside.named_buffers()}
        cards = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=cards), self.shown():
                self._gradients(0, plan)
        finally:
            for name, buffer in self.beside.named_buffers():
                buffer.copy_(buffers[name])
            self.optimizers.forget_gradients()

    def _gradients(self, step: int, plan: Plan) -> tuple[float, dict[str, float]]:
        count = self.settings.accumulate
        loss = compiled(self.loss) if plan.compiled else self.loss
        total, sums = 0.0, dict[str, float]()
        marks = [self._marks(step * count + i) for i in range(count)]
        for i, share in enumerate(_shares(marks)):
            if not math.isfinite(share):  # no target of this batch counts
                continue
            index = step * count + i
            ids = self._batch(index)
            now = loss.at(step, plan.steps, index) if isinstance(loss, Scheduled) else loss
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=plan.precision is Precision.BF16
            ):
                value, parts = loss_of(now, self.decoder, ids, marks[i])
            (value / share).backward()  # type: ignore[no-untyped-call]
            total += float(value.detach()) / share
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + part / share
        return total, sums

    def _marks(self, index: int) -> Marks | None:
        if not isinstance(self.data, MarkedTokens):
            return None
        s = self.settings
        arrays = self.data.batch_marks(s.seed, index, s.batch_size, s.length)
        counted, segments = (torch.from_numpy(a).to(self.device) for a in arrays)  # B T
        return Marks(counted, segments)

    def _batch(self, index: int) -> Tensor:
        s, vocabulary = self.settings, self.decoder.config.vocab_size
        ids = self.data.batch(s.seed, index, s.batch_size, s.length)  # B T+1
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise DataError(
                f"id {ids.min() if ids.min() < 0 else ids.max()} is outside the vocabulary of "
                f"{vocabulary}",
                where=f"batch {index}",
                remedy="Pack the text with the model's own tokenizer",
            )
        return torch.from_numpy(ids).to(self.device)


def check_trainable(decoder: Decoder, data: Tokens, settings: FitSettings) -> None:
    """Raises ConfigError for rows longer than the model, DataError for less than one batch."""
    positions = decoder.config.max_positions
    if settings.length > positions:
        raise ConfigError(
            f"length is {settings.length}, the model has {positions} positions",
            remedy=f"Give --length {positions} or less",
        )
    blocks = data.n_blocks(settings.length)
    if blocks < settings.batch_size:
        raise DataError(
            f"{blocks} blocks of {settings.length} tokens are fewer than one batch of "
            f"{settings.batch_size}",
            remedy="Give more text, or a smaller --batch-size or --length",
        )


def loss_of(
    loss: Loss, decoder: Decoder, ids: Tensor, marks: Marks | None
) -> tuple[Tensor, dict[str, float]]:
    """Returns what `loss` gives; one that serves running text alone never sees marks."""
    return loss(decoder, ids) if marks is None else loss(decoder, ids, marks)


def _shares(batches: Sequence[Marks | None]) -> list[float]:
    """What each batch's mean is divided by, so that the sum is a mean over all counted tokens."""
    counts = [1 if marks is None else int(marks.counted.sum()) for marks in batches]
    return [sum(counts) / count if count else math.inf for count in counts]


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text
