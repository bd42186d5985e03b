"""Pruning in rounds, and learning again from the original.

For: one or more pruning methods after each other, each calibrated on what the one before
left, with least-squares repair between them; then distillation from the whole model
(Muralidharan et al. 2024).
Not for: choosing how much to prune (`miudo.shrink`).
Read next: `miudo.compress.distill.lesson`.

Shapes: B batch, T positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from miudo.compress.distill.lesson import Lesson, distill
from miudo.compress.method import Method, Report
from miudo.compress.prune.repair import Origin, repair
from miudo.compress.prune.sparse import SparsePruning
from miudo.decoder.decoder import Decoder
from miudo.decoder.sparsity import Masks
from miudo.errors import ConfigError, DataError
from miudo.train.loop import FitResult
from miudo.train.progress import Progress
from miudo.train.run_folder import RunFolder
from miudo.train.stepper import Tokens

__all__ = ["Pruner", "Recovered", "Recovery", "calibration_batches", "prune_and_recover"]

_ROWS = 2


@runtime_checkable
class Pruner(Method, Protocol):
    """A method that takes parts out and knows which are left."""

    def origin(self, decoder: Decoder, statistics: Any) -> Origin:
        """Returns which of `decoder`'s layers and channels stay."""
        ...


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a pruned model learns again, and the folder of that run."""

    lesson: Lesson
    out: Path | RunFolder
    progress: Progress | None = None
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Recovered:
    """The smaller decoder, a report for each method, how the recovery ended, if any, its zeros."""

    decoder: Decoder
    reports: tuple[Report, ...]
    fit: FitResult | None = None
    masks: Masks | None = None


def calibration_batches(data: Tokens, *, tokens: int, length: int) -> list[Tensor]:
    """Returns about `tokens` ids as batches [B, T], from blocks spread over all of `data`.

    Raises DataError if there is not one block of `length`.
    """
    there = data.n_blocks(length)
    if there < 1:
        raise DataError(
            f"the text has no block of {length} tokens to calibrate on",
            remedy="Give more text, or a smaller length",
        )
    wanted = min(max(1, tokens // length), there)
    places = [i * there // wanted for i in range(wanted)]
    rows = np.stack([data.block(i, length)[:-1] for i in places])  # rows T
    return list(torch.split(torch.from_numpy(rows), _ROWS))


def prune_and_recover(
    decoder: Decoder,
    methods: Sequence[Method],
    batches: Sequence[Tensor],
    recovery: Recovery | None = None,
    *,
    ridge: float | None = None,
    keep_zeros: bool = False,
    check: Callable[[Decoder], None] = lambda _: None,
) -> Recovered:
    """Prunes by `methods` in order, then distils from `decoder` itself, which stays as it was.

    With `ridge` the matrices that write to the residual stream are fitted anew after each
    method, to what `decoder` gives. Without `recovery` nothing is learned again. Zeros that a
    method made stay zeros, and with `keep_zeros` those that the model brought. `check` is given
    what was pruned before anything is learned. Raises what the methods, `repair`, `check` and
    `distill` raise, and ConfigError for a repair after what is no pruning.
    """
    pruned, reports, origin = decoder, list[Report](), Origin()
    surviving: list[int] | None = list(range(decoder.config.n_layers))
    for method in methods:
        statistics = method.calibrate(pruned, batches) if method.needs_calibration else None
        before = pruned
        pruned, report = method.apply(before, statistics)
        if ridge is not None:
            origin = origin.then(_origin(method, before, statistics))
            repaired = repair(decoder, pruned, batches, origin, ridge=ridge)
            pruned = repaired.decoder
            report = dataclasses.replace(report, notes=(*report.notes, repaired.note))
        reports.append(report)
        surviving = _still(surviving, report, pruned.config.n_layers)
        if recovery is not None and recovery.progress is not None:
            recovery.progress.note(f"{report.method}: " + "; ".join(report.notes))
    check(pruned)
    sparse = keep_zeros or any(isinstance(method, SparsePruning) for method in methods)
    masks = Masks.of(pruned) if sparse else None
    if recovery is None:
        return Recovered(pruned, tuple(reports), masks=masks)
    result = distill(
        [decoder],
        pruned,
        recovery.lesson,
        recovery.out,
        surviving=surviving,
        masks=masks,
        progress=recovery.progress,
        resume=recovery.resume,
    )
    return Recovered(pruned, tuple(reports), result, masks)


def _still(surviving: list[int] | None, report: Report, n_layers: int) -> list[int] | None:
    """Which of the first model's layers are left; None once a method does not say."""
    if surviving is None or report.layers is None:
        return surviving if surviving is not None and len(surviving) == n_layers else None
    return [surviving[i] for i in report.layers]


def _origin(method: Method, before: Decoder, statistics: Any) -> Origin:
    if not isinstance(method, Pruner):
        raise ConfigError(
            f"{method.name} leaves nothing to repair", remedy="Repair after pruning alone"
        )
    return method.origin(before, statistics)
