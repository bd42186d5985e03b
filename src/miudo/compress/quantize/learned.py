"""Rounding learned block by block: up or down is decided by what the block gives.

For: a little more than GPTQ where a minute a block may be spent; SignRound (Cheng et al. 2024),
as AutoRound runs it, onto the grids of GGUF's block types.
Not for: learning scales (they stay those of the importance-weighted search), or the weights
(quantisation-aware training does).
Read next: `miudo.compress.quantize.order`, then `miudo.formats.grid`.

Shapes: B batch, T positions, D d_model, O outputs and I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from miudo.compress.method import Report, in_range
from miudo.compress.quantize.gptq import Outcome, round_matrix
from miudo.compress.quantize.order import round_in_order
from miudo.compress.quantize.plan import (
    Calibration,
    Plan,
    Sequential,
    check_calibrated,
    check_type,
    importance,
    squared_error,
)
from miudo.compress.station import Gram, Station
from miudo.compress.walk import walk
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError
from miudo.formats.block_codec import ByteArray
from miudo.formats.blocks import encode, to_f32
from miudo.formats.grid import Grid, codes_of, grid_of, with_codes
from miudo.tensors import DType, StoredTensor, Weights

__all__ = ["LearnedRounding", "Steps", "learn_block"]

_LOOKS = 10  # times at which a block's whole calibration says whether a step is the best so far


class Steps:
    """A matrix on a grid, between two steps of which a learned shift decides.

    `shift` V [O, I] lies in [-1/2, 1/2]; the value is levels[round((w - offset) / scale + V)] *
    scale + offset, whose gradient goes through the rounding as if it were not there. V = 0 is
    what the search for scales gave. Exact zeros stay.
    """

    def __init__(self, weight: Tensor, stored: StoredTensor) -> None:
        grid = grid_of(stored)
        self.stored, self._first = stored, float(grid.levels[0])
        self._last = float(grid.levels[-1])
        self._scale, self._offset = (torch.from_numpy(a) for a in (grid.scale, grid.offset))
        raised = torch.nan_to_num((weight - self._offset) / self._scale)
        # What the search chose is V = 0, to the bit: a half may have gone either way there.
        start = torch.from_numpy(grid.levels[codes_of(stored)])
        self._raised = torch.where(self._clipped(raised) == start, raised, start)
        self._fixed = (weight == 0) & (torch.from_numpy(to_f32(stored)) == 0)
        self.shift = torch.zeros_like(weight, requires_grad=True)

    @staticmethod
    def fits(grid: Grid) -> bool:
        """Whether levels are steps of one: between those of a table there is no middle."""
        return bool((np.diff(grid.levels) == 1).all())

    def values(self) -> Tensor:
        """Returns the matrix [O, I], rounded, with a gradient for `shift`."""
        wanted = self._raised + self.shift
        rounded = wanted + (self._clipped(wanted) - wanted).detach()
        return torch.where(self._fixed, torch.zeros(()), rounded * self._scale + self._offset)

    def codes(self) -> ByteArray:
        """Returns the codes [O, I] of `values`."""
        with torch.no_grad():
            steps = self._clipped(self._raised + self.shift) - self._first
            codes: ByteArray = steps.numpy().astype(np.uint8)
        kept = codes_of(self.stored)
        return np.where(self._fixed.numpy(), kept, codes)

    def move(self, rate: float) -> None:
        """Takes one step against the sign of the gradient."""
        with torch.no_grad():
            if self.shift.grad is not None:
                self.shift -= rate * self.shift.grad.sign()
                self.shift.clamp_(-0.5, 0.5)
                self.shift.grad = None

    def _clipped(self, raised: Tensor) -> Tensor:
        lowest = self._first + (1.0 if self.stored.dtype is DType.Q8_0 else 0.0)
        return raised.round().clamp(lowest, self._last)


def learn_block(
    station: Station,
    start: dict[str, StoredTensor],
    target: Sequence[Tensor],
    steps: int,
) -> tuple[dict[str, StoredTensor], float, float]:
    """Returns a block's matrices rounded, and the squared error at the start and at the best.

    `start` are the matrices as the search rounded them, `target` what the block should give
    [B, T, D], one an input. Each step takes one input; the learning rate falls from 1 / `steps`
    to 0. Raises CheckFailedError for an error that is not finite.
    """
    learned = {
        name: Steps(station.weights[name].detach(), stored)
        for name, stored in start.items()
        if stored.dtype.block > 1 and Steps.fits(grid_of(stored))
    }
    fixed = {
        name: torch.from_numpy(to_f32(stored))
        for name, stored in start.items()
        if name not in learned
    }

    def weights() -> dict[str, Tensor]:
        return fixed | {name: matrix.values() for name, matrix in learned.items()}

    with torch.no_grad():
        first = least = squared_error(station, weights(), target)
    # Where nothing can be learned (codebooks, plain floats) the start is the end.
    steps = steps if learned else 0
    best = {name: matrix.codes() for name, matrix in learned.items()}
    for step in range(steps):
        i = step % len(station.inputs)
        with torch.enable_grad():
            out = station.run(station.inputs[i], i, weights())
            loss = (out - target[i]).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
        for matrix in learned.values():
            matrix.move((1 - step / steps) / steps)
        if (step + 1) % max(1, steps // _LOOKS) == 0 or step + 1 == steps:
            with torch.no_grad():
                error = squared_error(station, weights(), target)
            if error < least:
                least, best = error, {name: m.codes() for name, m in learned.items()}
    if not np.isfinite([first, least]).all():
        raise CheckFailedError(
            f"the block's error is {least}", where=station.name, remedy="Calibrate on other text"
        )
    made = dict(start)
    for name, codes in best.items():
        made[name] = with_codes(start[name], codes)
    return made, first, least


@dataclass(frozen=True, slots=True)
class LearnedRounding(Sequential):
    """Stores matrices as `dtype`, in each block rounded so that its output errs little.

    `steps` of signed gradient descent a block. The block's inputs come from rounded
    predecessors, its target from the whole model, so that a block makes up for those before it.
    The table and the head are rounded by GPTQ, as `tables` where that is another type. Raises
    ConfigError for a type without a rounding rule or a value out of range.
    """

    name: ClassVar[str] = "learned"

    dtype: DType = DType.Q4_0
    steps: int = 200
    tables: DType | None = None

    def __post_init__(self) -> None:
        check_type(self.dtype, self.tables)
        in_range("steps", self.steps, 1, 1_000_000, whole=True)

    def store(
        self, decoder: Decoder, statistics: Calibration | None = None
    ) -> tuple[Weights, Report]:
        """Returns the file's tensors and the report: what learning took off the blocks' error."""
        batches = check_calibrated(self, statistics)
        plan, outcome = Plan.of(decoder, self.dtype, self.tables), Outcome()
        whole = walk(decoder, batches)
        learned: dict[str, StoredTensor] = {}
        errors: list[tuple[float, float]] = []

        def before(station: Station) -> None:
            wanted = next(whole)
            if station.name == "head":
                return
            grams = station.grams()
            start = {
                name: encode(w.detach().numpy(), plan.dtypes[name], importance(grams[name]))
                for name, w in station.weights.items()
            }
            made, first, least = learn_block(station, start, wanted.outputs(), self.steps)
            learned.update(made)
            errors.append((first, least))

        def rule(name: str, weight: Tensor, gram: Gram, dtype: DType) -> StoredTensor:
            return learned.get(name) or round_matrix(name, weight, gram, dtype, outcome)

        stored = round_in_order(decoder, batches, plan, rule, before)
        first, least = (sum(column) for column in zip(*errors, strict=True))
        note = f"learning took {1 - least / first:.1%} off the blocks' squared error"
        return stored, plan.report(self, decoder, "rounding learned", (note, *outcome.notes()))
