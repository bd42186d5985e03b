"""GPTQ: columns rounded one after the other, each one's error made up for by those to come.

For: the most quality at the same bytes and type without training; blocks of GGUF as they are.
Scales are fixed by an importance-weighted search beforehand; afterwards they are fitted to the
codes, and the codes gone over again (`descend`), in turns.
Not for: training the rounding (`miudo.compress.quantize.learned`).
Read next: `miudo.compress.hessian`, the arithmetic; `miudo.compress.quantize.order`, the order.

Shapes: B batch, T positions, O outputs and I inputs of a matrix.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miudo.compress.hessian import DAMPING, compensate, invert, output_error
from miudo.compress.method import Report, in_range
from miudo.compress.quantize.descent import descend
from miudo.compress.quantize.order import Rule, round_in_order
from miudo.compress.quantize.plan import (
    Calibration,
    Plan,
    Sequential,
    check_calibrated,
    check_type,
    importance,
)
from miudo.compress.quantize.propagation import STRENGTH
from miudo.compress.quantize.refit import refit
from miudo.compress.station import Gram
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, ConfigError
from miudo.formats.block_codec import ByteArray
from miudo.formats.blocks import encode, to_f32
from miudo.formats.grid import Grid, codes_of, grid_of, with_codes
from miudo.meter import give_back
from miudo.tensors import DType, StoredTensor, Weights

__all__ = ["GPTQ", "Outcome", "Rounding", "gptq", "round_matrix"]

_TURNS, _FEW = 4, 1e-3
"""So often scales and codes are fitted to each other, or until that share of codes moves."""
_BLOCK = 32
"""Columns whose errors reach all later ones at once: changes speed, not the arithmetic."""
_ROWS = 256
"""Rows done together: enough for NumPy to be quick, and few enough to take little memory."""


def gptq(weight: Tensor, grid: Grid, factor: Tensor, order: Tensor) -> ByteArray:
    """Returns codes [O, I] on `grid` for weight [O, I], columns taken in `order` [I].

    `factor` is the upper factor of the inverse Hessian whose rows and columns are in that order
    (Frantar et al. 2023). Exact zeros stay zeros where the grid has one: a pruned matrix keeps
    its mask, and what is left makes up for what the pruned columns do not carry.
    """
    held, zero = _held_zeros(weight, grid)
    columns, held = grid.transposed(), held.T.copy()
    codes = np.zeros(held.shape, dtype=np.uint8)  # I O

    def fix(j: int, ahead: Tensor) -> Tensor:
        at = int(order[j])
        column = columns[at]  # O
        chosen = column.nearest(ahead[:, 0].numpy().astype(np.float32))
        chosen[held[at]] = zero
        codes[at] = chosen
        return torch.from_numpy(column.values(chosen)).double()

    compensate(weight.double()[:, order], factor, fix, block=_BLOCK)
    return codes.T.copy()


def _held_zeros(weight: Tensor, grid: Grid) -> tuple[npt.NDArray[np.bool_], int]:
    """Returns which exact zeros of weight [O, I] the grid can keep, and the code of zero."""
    zero = int(np.argmin(np.abs(grid.levels)))
    return (weight == 0).numpy() & (grid.offset == 0) & (grid.levels[zero] == 0), zero


def _settled(
    weight: Tensor, plain: StoredTensor, codes: ByteArray, hessian: Tensor
) -> StoredTensor:
    """Returns weight [O, I] with scales and codes [O, I] fitted to each other in turns."""
    wanted, h = weight.double().numpy(), hessian.numpy()
    found = refit(wanted, with_codes(plain, codes), h)
    for _ in range(_TURNS):
        grid = grid_of(found)
        held = _held_zeros(weight, grid)[0]
        codes, changed = descend(wanted, grid, codes_of(found), h, held=held)
        found = refit(wanted, with_codes(found, codes), h)
        if changed < _FEW * codes.size:
            break
    return found


def _solved(
    name: str, weight: Tensor, plain: StoredTensor, gram: Gram, order: Tensor, damping: float
) -> tuple[StoredTensor, str | None]:
    """Returns weight [O, I] by GPTQ on the grid of `plain`, then scales and codes in turns.

    Some rows at a time: none hangs on another. And the inverse's note.
    """
    inverse = invert(gram.outer, damping=damping, where=name, order=order)
    places = [slice(i, i + _ROWS) for i in range(0, len(weight), _ROWS)]
    codes = [gptq(weight[at], grid_of(_some(plain, at)), inverse.factor, order) for at in places]
    added, note = inverse.damping * float(gram.outer.diagonal().mean()), inverse.note
    del inverse  # a square that is not needed any more
    made = []
    with _damped(gram.outer, added) as hessian:
        for at, chosen in zip(places, codes, strict=True):
            give_back()
            made.append(_settled(weight[at], _some(plain, at), chosen, hessian).data)
    return StoredTensor(plain.dtype, plain.shape, np.concatenate(made)), note


@contextlib.contextmanager
def _damped(outer: Tensor, added: float) -> Iterator[Tensor]:
    """While it holds, `outer` has `added` on its diagonal: a second square would be a layer's."""
    diagonal = outer.diagonal()
    kept = diagonal.clone()
    diagonal.add_(added)
    try:
        yield outer
    finally:
        diagonal.copy_(kept)


def _some(stored: StoredTensor, at: slice) -> StoredTensor:
    """Returns some rows [n, I] of a matrix [O, I], sharing memory."""
    data = stored.data.reshape(stored.shape[0], -1)[at]
    return StoredTensor(stored.dtype, (len(data), *stored.shape[1:]), data.reshape(-1))


@dataclass
class Outcome:
    """What became of the matrices: how many kept plain rounding, what had to be damped more."""

    matrices: int = 0
    kept: list[str] = field(default_factory=list)
    before: float = 0.0
    after: float = 0.0
    damped: list[str] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        """Returns what a report says of it, nothing where no matrix was counted."""
        if not self.matrices:
            return ()
        removed = 1 - self.after / self.before if self.before > 0 else 0.0
        found = [
            f"outputs' squared error {removed:.1%} below importance rounding's, summed over "
            f"{self.matrices} matrices"
        ]
        if self.kept:
            found.append(f"importance rounding was better for {', '.join(self.kept)}")
        return (*found, *self.damped)


def round_matrix(
    name: str,
    weight: Tensor,
    gram: Gram,
    dtype: DType,
    outcome: Outcome,
    *,
    damping: float = DAMPING,
    act_order: bool = True,
) -> StoredTensor:
    """Returns weight [O, I] as `dtype`: by GPTQ, or by importance where that errs less.

    What each errs is measured on the calibration's inputs, trace((W - Q) H (W - Q)^T). Types
    without blocks are rounded to nearest.
    """
    plain = encode(weight.numpy(), dtype, importance(gram))
    if dtype.block == 1:
        return plain
    diagonal = gram.outer.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True)
    if not act_order:
        order = torch.arange(len(diagonal))
    found, note = _solved(name, weight, plain, gram, order, damping)
    errors = [
        output_error(weight, torch.from_numpy(to_f32(made)), gram.outer) for made in (plain, found)
    ]
    if not np.isfinite(errors).all():
        raise CheckFailedError(
            f"rounded to {dtype}, its outputs' error is {errors}",
            where=name,
            remedy="Check that the model is trained and the text is its kind of text",
        )
    outcome.matrices += 1
    outcome.before += errors[0] / gram.tokens
    outcome.after += min(errors) / gram.tokens
    if note is not None:
        outcome.damped.append(f"{name}: {note}")
    if errors[1] < errors[0]:
        return found
    outcome.kept.append(name)
    return plain


class Rounding(StrEnum):
    """What rounds a matrix once its weights are as a method wants them."""

    IMPORTANCE = "importance"
    GPTQ = "gptq"

    def rule(self, outcome: Outcome, *, damping: float = DAMPING, act_order: bool = True) -> Rule:
        """Returns the rule; GPTQ's counts in `outcome` what became of the matrices."""

        def weighed(_: str, weight: Tensor, gram: Gram, dtype: DType) -> StoredTensor:
            return encode(weight.numpy(), dtype, importance(gram))

        def solved(name: str, weight: Tensor, gram: Gram, dtype: DType) -> StoredTensor:
            return round_matrix(
                name, weight, gram, dtype, outcome, damping=damping, act_order=act_order
            )

        return solved if self is Rounding.GPTQ else weighed


@dataclass(frozen=True, slots=True)
class GPTQ(Sequential):
    """Stores matrices as `dtype`, rounded by GPTQ on what earlier rounded matrices give them.

    `damping` is the share of the mean diagonal added to the Hessian's; `act_order` takes the
    columns with the largest inputs first. `tables` is the type of token table and head, where it
    is another. `propagation` is how much of its inputs' error a matrix makes up for. Raises
    ConfigError for a type without a rounding rule or a value out of range.
    """

    name: ClassVar[str] = "gptq"

    dtype: DType = DType.Q4_0
    damping: float = DAMPING
    act_order: bool = True
    tables: DType | None = None
    propagation: float = STRENGTH

    def __post_init__(self) -> None:
        check_type(self.dtype, self.tables)
        in_range("damping", self.damping, 1e-6, 10.0)
        in_range("propagation", self.propagation, 0.0, 1.0)
        if type(self.act_order) is not bool:
            raise ConfigError(f"act_order is {self.act_order!r}", remedy="Give true or false")

    def store(
        self, decoder: Decoder, statistics: Calibration | None = None
    ) -> tuple[Weights, Report]:
        """Returns the file's tensors and the report, which counts what kept plain rounding.

        Raises DataError without calibration, CheckFailedError where no damping gives a factor.
        """
        batches = check_calibrated(self, statistics)
        plan, outcome = Plan.of(decoder, self.dtype, self.tables), Outcome()

        rule = Rounding.GPTQ.rule(outcome, damping=self.damping, act_order=self.act_order)
        stored = round_in_order(decoder, batches, plan, rule, propagation=self.propagation)
        return stored, plan.report(self, decoder, "rounded by GPTQ", outcome.notes())
