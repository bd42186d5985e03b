"""AWQ: channels with large inputs made larger before rounding, and what precedes them smaller.

For: sparing a few channels that matter much, in a file that any runtime can read: the scales are
folded into norms and matrices, exactly (Lin et al. 2024).
Not for: models whose norms have no gain, or that norm what a sublayer gives (OLMo 2).
Read next: `miudo.compress.quantize.gptq`, which may do the rounding.

Narrower ranges, AWQ's clipping, need no step of their own: the search for scales tries them.

Shapes: B batch, T positions, O outputs and I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from miudo.compress.hessian import output_error
from miudo.compress.method import Report, in_range
from miudo.compress.quantize.gptq import Outcome, Rounding
from miudo.compress.quantize.order import round_in_order
from miudo.compress.quantize.plan import (
    Calibration,
    Plan,
    Sequential,
    check_calibrated,
    check_enum,
    check_type,
    importance,
    squared_error,
)
from miudo.compress.station import Gram, Station
from miudo.config import LayerConfig, Mlp, ModelConfig, Parallel
from miudo.decoder.decoder import Decoder
from miudo.formats.blocks import encode, to_f32
from miudo.tensors import DType, Weights

__all__ = ["AWQ", "Fold", "apply_fold", "folds"]


@dataclass(frozen=True, slots=True)
class Fold:
    """Where a scale s [I] of the inputs of `readers` is exact: `before` gives 1 / s of it.

    `before` are parameters whose first axis is those I channels. `readers` are matrices' names.
    """

    name: str
    before: tuple[Tensor, ...]
    readers: tuple[str, ...]


def folds(block: Any, at: str, config: ModelConfig, layer: LayerConfig) -> Iterator[Fold]:
    """Yields the places in a block named `at` where scales can be folded, in order of use."""
    shared = config.parallel is Parallel.ONE_NORM
    attention = [n for n in ("q", "q_a", "k", "kv_a", "v") if hasattr(block.attn, n)]
    into_mlp = ["mlp.up"] if block.mlp.gate is None else ["mlp.gate", "mlp.up"]
    into_attention = [f"attn.{n}" for n in attention] + (into_mlp if shared else [])
    places: list[tuple[str, nn.Module, list[str]]] = [
        ("norm to q", block.attn_norm, into_attention)
    ]
    # A value serves several heads where keys are grouped: their outputs' inputs differ.
    if config.latent is None and layer.n_heads == layer.n_kv_heads:
        places.append(("v to o", block.attn.v, ["attn.o"]))
    if not shared:
        places.append(("norm to up", block.mlp_norm, into_mlp))
    if config.mlp is Mlp.GATED:  # the activation acts on the gate alone
        places.append(("up to down", block.mlp.up, ["mlp.down"]))
    for name, module, readers in places:
        before = tuple(module.parameters())
        if before:
            yield Fold(f"{at}: {name}", before, tuple(f"{at}.{n}.weight" for n in readers))


@torch.no_grad()
def apply_fold(fold: Fold, weights: Mapping[str, Tensor], scale: Tensor) -> None:
    """Multiplies the readers' columns by `scale` [I] and divides what is before them, in place."""
    for part in fold.before:
        part.div_(scale if part.dim() == 1 else scale[:, None])
    for name in fold.readers:
        weights[name].mul_(scale)


@dataclass(frozen=True, slots=True)
class AWQ(Sequential):
    """Stores matrices as `dtype`, scaled by channel before `rounding` where that helps.

    The scales are powers a of the inputs' root mean square, `steps` of them from 0 to 1; that
    which leaves the matrices' outputs the least error is tried, and kept only if the block's
    own output errs less with it, measured on the calibration. `tables` is the type of token table
    and head, where it is another. Raises ConfigError for a type without a rounding rule or a value
    out of range.
    """

    name: ClassVar[str] = "awq"

    dtype: DType = DType.Q4_0
    steps: int = 10
    rounding: Rounding = Rounding.IMPORTANCE
    tables: DType | None = None

    def __post_init__(self) -> None:
        check_type(self.dtype, self.tables)
        in_range("steps", self.steps, 1, 100, whole=True)
        check_enum("rounding", self.rounding, Rounding)

    def store(
        self, decoder: Decoder, statistics: Calibration | None = None
    ) -> tuple[Weights, Report]:
        """Returns the file's tensors and the report, which names the scales that were kept."""
        batches = check_calibrated(self, statistics)
        plan, outcome = Plan.of(decoder, self.dtype, self.tables), Outcome()
        kept: list[str] = []
        tried = 0

        def before(station: Station) -> None:
            nonlocal tried
            if station.name == "head":
                return
            layer = decoder.config.layers[int(station.name.removeprefix("layers."))]
            for fold in folds(station.module, station.name, decoder.config, layer):
                tried += 1
                if self._improve(station, fold, plan.dtypes):
                    kept.append(fold.name)

        stored = round_in_order(decoder, batches, plan, self.rounding.rule(outcome), before)
        note = f"scales kept for {len(kept)} of {tried} places" + "".join(f"; {k}" for k in kept)
        notes = (note, *outcome.notes())
        return stored, plan.report(self, decoder, f"scaled, rounded by {self.rounding}", notes)

    def _improve(self, station: Station, fold: Fold, dtypes: Mapping[str, DType]) -> bool:
        """Folds the best scale into the block if its rounded output then errs less."""
        grams = station.grams()
        gram = grams[fold.readers[0]]
        scale = self._best_scale(station, fold, gram, dtypes)
        if scale is None:
            return False
        target = station.outputs()
        before = _block_error(station, grams, dtypes, target)
        apply_fold(fold, station.weights, scale)
        after = _block_error(station, station.grams(), dtypes, target)
        if after < before:
            return True
        apply_fold(fold, station.weights, 1 / scale)
        return False

    def _best_scale(
        self, station: Station, fold: Fold, gram: Gram, dtypes: Mapping[str, DType]
    ) -> Tensor | None:
        """Returns the scale [I] that leaves the readers' outputs the least error, None for 1."""
        size = gram.mean_square.sqrt().clamp_min(1e-8)
        best, least = None, np.inf
        for step in range(self.steps):
            scale = size ** (step / self.steps)
            # Its powers of two are free of error, and a sparse channel must not blow up.
            scale = (scale / (scale.max() * scale.min()).sqrt()).clamp(1e-3, 1e3)
            error = 0.0
            for name in fold.readers:
                weight = station.weights[name].detach().double()
                held = encode((weight * scale).float().numpy(), dtypes[name])
                values = torch.from_numpy(to_f32(held)).double() / scale
                error += output_error(weight, values, gram.outer)
            if error < least:
                best, least = (scale.float() if step else None), error
        return best


def _block_error(
    station: Station,
    grams: Mapping[str, Gram],
    dtypes: Mapping[str, DType],
    target: Sequence[Tensor],
) -> float:
    """Returns the squared error of the block's output, its matrices rounded by importance."""
    rounded = {
        name: torch.from_numpy(
            to_f32(encode(w.detach().numpy(), dtypes[name], importance(grams[name])))
        )
        for name, w in station.weights.items()
    }
    return squared_error(station, rounded, target)
