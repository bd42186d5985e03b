"""Pruning of single weights: the matrices keep their shape and get zeros.

For: a share of zeros, or N of every M, in every matrix of the blocks; block by block, so that
each is pruned on what the pruned ones before it give.
Not for: smaller tensors (`miudo.compress.prune.width`, `heads`, `hidden`, `depth`): files here
are as large as before, until something packs the zeros.
Read next: `miudo.compress.prune.sparsegpt`; `miudo.decoder.sparsity`, which keeps the zeros.

Shapes: B batch, T positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from miudo.compress.hessian import DAMPING, invert, output_error
from miudo.compress.method import Report, check_finite, check_seen, describe, in_range
from miudo.compress.prune.allocation import Allocation, allocate
from miudo.compress.prune.pattern import Pattern
from miudo.compress.prune.repair import Origin
from miudo.compress.prune.scores import magnitude, wanda
from miudo.compress.prune.sparsegpt import sparsegpt
from miudo.compress.station import Gram, Station
from miudo.compress.walk import walk
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, DataError

__all__ = ["SparseMethod", "SparsePruning", "SparseStatistics"]

# Of the matrix's whole output: what rounding to float32 may add to an error of zero.
_ROUNDING = 1e-6
# A share of zeros that no training leaves by itself.
_DENSE = 1e-3


class SparseMethod(StrEnum):
    """How weights are chosen, and whether others make up for them.

    `magnitude` looks at the weights alone, `wanda` also at their inputs' norms (Sun et al. 2023),
    `sparsegpt` at the inputs' whole Hessian, and moves the weights that stay (Frantar and
    Alistarh 2023).
    """

    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    SPARSEGPT = "sparsegpt"


@dataclass(frozen=True, slots=True)
class SparseStatistics:
    """The text itself, ids [B, T]: later blocks' inputs hang on how earlier ones are pruned."""

    batches: tuple[Tensor, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class SparsePruning:
    """Sets `pattern`'s weights to zero in every matrix of the blocks, never in tables or head.

    `pattern` is a share of zeros, "0.5", or N:M, "2:4". `allocation` gives blocks shares of their
    own, up to about `spread` beside it. `damping` is SparseGPT's alone. Raises ConfigError for
    a value out of range.
    """

    name: ClassVar[str] = "sparse"
    needs_calibration: ClassVar[bool] = True

    pattern: str = "0.5"
    method: SparseMethod = SparseMethod.SPARSEGPT
    allocation: Allocation = Allocation.UNIFORM
    spread: float = 0.08
    damping: float = DAMPING

    def __post_init__(self) -> None:
        Pattern.parse(self.pattern)
        in_range("spread", self.spread, 0.0, 0.5)
        in_range("damping", self.damping, 1e-6, 1.0)

    def calibrate(self, decoder: Decoder, batches: Iterable[Tensor]) -> SparseStatistics:
        """Returns the text to prune by. Raises DataError for none, ConfigError for a misfit."""
        check_finite(decoder)
        self._check_fits(decoder)
        given = tuple(ids for ids in batches if ids.numel())
        tokens = sum(ids.numel() for ids in given)
        check_seen(self.name, tokens)
        return SparseStatistics(given, tokens)

    def apply(
        self, decoder: Decoder, statistics: SparseStatistics | None = None
    ) -> tuple[Decoder, Report]:
        """Returns a sparse decoder of the same shape, and the report with each matrix's error.

        Raises CheckFailedError where SparseGPT's error is above magnitude's on the same inputs, or
        a matrix has not the zeros it should.
        """
        if statistics is None:
            raise DataError("needs calibration", where=self.name, remedy="Call calibrate first")
        check_seen(self.name, statistics.tokens)
        check_finite(decoder)
        self._check_fits(decoder)
        pattern = Pattern.parse(self.pattern)
        shares = allocate(decoder, statistics.batches, pattern, self.allocation, self.spread)
        pruned = Decoder.from_weights(decoder.config, decoder.to_weights())
        account = _Account()
        for station, share in zip(walk(pruned, statistics.batches), shares, strict=False):
            self._prune(station, Pattern(share, pattern.group), account)
        check_finite(pruned)
        shown = [f"{share:.3f}" for share in shares]
        uneven = () if len(set(shares)) == 1 else (f"shares of zeros a block: {shown}",)
        report = describe(
            self,
            decoder.config,
            pruned.config,
            reasons={},
            notes=(*account.notes(self, statistics.tokens), *uneven),
        )
        return pruned, report

    def origin(self, decoder: Decoder, statistics: SparseStatistics) -> Origin:
        """Returns where layers and channels come from: all stay."""
        return Origin()

    def _check_fits(self, decoder: Decoder) -> None:
        pattern = Pattern.parse(self.pattern)
        for name, module in decoder.layers.named_modules(prefix="layers"):
            if isinstance(module, torch.nn.Linear):
                pattern.check_fits(f"{name}.weight", module.in_features)

    @torch.no_grad()
    def _prune(self, station: Station, pattern: Pattern, account: _Account) -> None:
        grams = station.grams()
        for name, weight in station.weights.items():
            plain = magnitude(weight, pattern)
            made = self._made(name, weight, grams[name], pattern, account)
            if self.method is SparseMethod.SPARSEGPT:
                made = account.not_above_magnitude(name, weight, made, plain, grams[name])
            account.add(weight, made, plain, grams[name])
            _check_zeros(name, weight, made, pattern, self.method)
            weight.copy_(made)

    def _made(
        self, name: str, weight: Tensor, gram: Gram, pattern: Pattern, account: _Account
    ) -> Tensor:
        if self.method is SparseMethod.MAGNITUDE:
            return magnitude(weight, pattern)
        if self.method is SparseMethod.WANDA:
            return wanda(weight, gram, pattern)
        inverse = invert(gram.outer, damping=self.damping, where=name)
        if inverse.note is not None:
            account.raised.append(f"{name}: {inverse.note}")
        return sparsegpt(weight, inverse, pattern)


class _Account:
    """Errors and zeros over all matrices, and where it went otherwise than asked."""

    def __init__(self) -> None:
        self.raised: list[str] = []
        self.zeros = self.weights = self.matrices = self.by_magnitude = 0
        self.error = self.plain = self.whole = 0.0

    def add(self, before: Tensor, made: Tensor, plain: Tensor, gram: Gram) -> None:
        """Counts a matrix, `plain` being what magnitude would have made of it."""
        self.error += output_error(before, made, gram.outer)
        self.plain += output_error(before, plain, gram.outer)
        self.whole += output_error(before, torch.zeros_like(before), gram.outer)
        self.zeros += int((made == 0).sum())
        self.weights += made.numel()
        self.matrices += 1

    def not_above_magnitude(
        self, name: str, before: Tensor, made: Tensor, plain: Tensor, gram: Gram
    ) -> Tensor:
        """Returns `made`, or `plain` where a matrix that was sparse before is better off so.

        Zeros that were there cannot make up for others, which the prices do not know. Raises
        CheckFailedError where a dense matrix would be better off by magnitude.
        """
        error, beside = (output_error(before, m, gram.outer) for m in (made, plain))
        whole = output_error(before, torch.zeros_like(before), gram.outer)
        if error <= beside + _ROUNDING * whole:
            return made
        if float((before == 0).double().mean()) < _DENSE:
            raise CheckFailedError(
                f"SparseGPT's error {error:.4g} is above magnitude's {beside:.4g}",
                where=name,
                remedy="Calibrate on more text, or take another method",
            )
        self.by_magnitude += 1
        return plain

    def notes(self, method: SparsePruning, tokens: int) -> tuple[str, ...]:
        """Zeros, and the output error as a share of the output, beside magnitude's."""
        share, beside = (e / self.whole if self.whole else 0.0 for e in (self.error, self.plain))
        first = (
            f"{self.zeros} of {self.weights} weights in {self.matrices} matrices are zero "
            f"({self.zeros / self.weights:.2%}), pattern {method.pattern}, by {method.method} over "
            f"{tokens} tokens; output error {share:.3%}, by magnitude {beside:.3%}"
        )
        better = f"{self.by_magnitude} matrices, sparse before, are better off by magnitude"
        return (first, *((better,) if self.by_magnitude else ()), *self.raised)


def _check_zeros(
    name: str, before: Tensor, made: Tensor, pattern: Pattern, method: SparseMethod
) -> None:
    """Raises CheckFailedError unless `made` has the pattern's zeros and those that were there."""
    rows, inputs = made.shape
    gone, kept = made == 0, True
    if pattern.group is not None:
        most = round(pattern.group * (1.0 - pattern.share))
        kept = int((~gone).reshape(-1, pattern.group).sum(1).max()) <= most
        wanted = rows * (inputs // pattern.group) * (pattern.group - most)
    elif method is SparseMethod.WANDA:
        wanted = rows * round(pattern.share * inputs)
    else:
        wanted = round(pattern.share * rows * inputs)
    found, lost = int(gone.sum()), int((before[gone.logical_not()] == 0).sum())
    if not kept or lost or found < wanted:
        raise CheckFailedError(
            f"{found} weights are zero, the pattern wants {wanted}; {lost} zeros were lost",
            where=name,
            remedy="This is a defect of the method: report it",
        )
