"""Feed-forward width pruning: the inner neurons that matter least go.

For: narrower feed-forward layers whose tensors really are smaller.
Not for: heads or the residual stream's width, or getting quality back
(`miudo.compress.prune.recover`).
Read next: `miudo.compress.prune.recover`.

Shapes: B batch, T positions, D d_model, F d_ff.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from miudo.compress.method import Report, check_finite, check_seen, describe, in_range
from miudo.compress.prune.repair import Origin
from miudo.compress.prune.slices import Places, best, multiple_of, pick
from miudo.decoder.decoder import Block, Decoder
from miudo.errors import CheckFailedError, ConfigError, DataError
from miudo.limits import LIMITS
from miudo.tensors import Role, StoredTensor, tensor_table

__all__ = ["WidthPruning", "WidthScore", "WidthStatistics"]


class WidthScore(StrEnum):
    """How a neuron's worth is measured at the input of `down`.

    `activation`: L2 over sequences of the mean magnitude over tokens (Minitron, Muralidharan
    et al. 2024). `output`: the same times the norm of the neuron's column of `down`, so what
    it adds to the residual stream.
    """

    ACTIVATION = "activation"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class WidthStatistics:
    """Per layer the squared mean magnitudes [F], summed over sequences."""

    energy: tuple[npt.NDArray[np.float64], ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class WidthPruning:
    """Keeps a share `keep` of each feed-forward layer's neurons, the same number in all.

    The width is rounded to a multiple of `multiple` (32 suits the 8-bit blocks). `widths`, if
    given, says every layer's width instead; unequal ones load only where the reader knows
    them. Raises ConfigError for a value out of range.
    """

    name: ClassVar[str] = "width"
    needs_calibration: ClassVar[bool] = True

    keep: float = 0.5
    widths: tuple[int, ...] = ()
    multiple: int = 32
    score: WidthScore = WidthScore.OUTPUT

    def __post_init__(self) -> None:
        in_range("keep", self.keep, 1e-3, 1.0)
        in_range("multiple", self.multiple, 1, 4096, whole=True)
        for i, width in enumerate(self.widths):
            in_range(f"widths[{i}]", width, 1, LIMITS.d_ff, whole=True)

    def calibrate(self, decoder: Decoder, batches: Iterable[Tensor]) -> WidthStatistics:
        """Returns how strongly each neuron fires on ids [B, T].

        Raises DataError if no token was seen, CheckFailedError if a layer saw nothing.
        """
        check_finite(decoder)
        self.resolve(decoder)
        meters = [_Meter(block.mlp.down) for block in _blocks(decoder)]
        tokens = 0
        try:
            with torch.no_grad():
                for ids in batches:
                    decoder(ids)
                    tokens += ids.numel()
        finally:
            for meter in meters:
                meter.remove()
        check_seen(self.name, tokens)
        for i, meter in enumerate(meters):
            if meter.tokens != tokens or not float(meter.energy.sum()) > 0.0:
                raise CheckFailedError(
                    f"calibration measured {meter.tokens} of {tokens} tokens and an energy of "
                    f"{float(meter.energy.sum())}",
                    where=f"layers.{i}.mlp.down",
                    remedy="Check that the model is trained and the text is its kind of text",
                )
        return WidthStatistics(tuple(m.energy.numpy() for m in meters), tokens)

    def apply(
        self, decoder: Decoder, statistics: WidthStatistics | None = None
    ) -> tuple[Decoder, Report]:
        """Returns the decoder with narrower feed-forward layers, and the report."""
        if statistics is None:
            raise DataError("needs calibration", where=self.name, remedy="Call calibrate first")
        check_seen(self.name, statistics.tokens)
        check_finite(decoder)
        widths = self.resolve(decoder)
        layers = tuple(
            dataclasses.replace(layer, d_ff=width)
            for layer, width in zip(decoder.config.layers, widths, strict=True)
        )
        config = dataclasses.replace(decoder.config, layers=layers)
        pruned = Decoder.from_weights(config, _narrowed(decoder, self._kept(decoder, statistics)))
        old = [layer.d_ff for layer in decoder.config.layers]
        report = describe(
            self,
            decoder.config,
            config,
            reasons={"": "its neurons fired least"},
            notes=(
                f"d_ff {old} became {list(widths)}, by {self.score} over "
                f"{statistics.tokens} tokens",
            ),
        )
        return pruned, report

    def origin(self, decoder: Decoder, statistics: WidthStatistics) -> Origin:
        """Returns where layers and channels come from: all stay."""
        return Origin()

    def resolve(self, decoder: Decoder) -> tuple[int, ...]:
        """Returns every layer's new width. Raises ConfigError where a layer cannot have it."""
        old = [layer.d_ff for layer in decoder.config.layers]
        if self.widths:
            widths = self.widths
            if len(widths) != len(old):
                raise ConfigError(
                    f"widths has {len(widths)} values, the model {len(old)} layers",
                    remedy="Give one width a layer",
                )
        else:
            widths = (multiple_of(self.multiple, self.keep, min(old)),) * len(old)
        for i, (width, had) in enumerate(zip(widths, old, strict=True)):
            if width > had:
                raise ConfigError(
                    f"widths[{i}] is {width}, the layer has {had}", remedy="Give less than it has"
                )
        return widths

    def _kept(self, decoder: Decoder, statistics: WidthStatistics) -> list[Places]:
        """Per layer the neurons to keep, in their old order."""
        kept = []
        for block, width, energy in zip(
            _blocks(decoder), self.resolve(decoder), statistics.energy, strict=True
        ):
            score = np.sqrt(energy)  # F
            if self.score is WidthScore.OUTPUT:
                columns = block.mlp.down.weight.detach().double().norm(dim=0)  # F
                score = score * columns.cpu().numpy()
            kept.append(best(score, width))
        return kept


class _Meter:
    """Sums, over sequences, the square of each neuron's mean magnitude over tokens."""

    def __init__(self, down: nn.Linear) -> None:
        self.energy = torch.zeros(down.in_features, dtype=torch.float64)  # F
        self.tokens = 0
        self._handle = down.register_forward_pre_hook(self._see)

    def _see(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inner = arguments[0].detach()  # B T F
        means = inner.abs().double().mean(dim=1)  # B F
        self.energy += means.square().sum(dim=0).cpu()
        self.tokens += inner.shape[0] * inner.shape[1]

    def remove(self) -> None:
        """Takes the hook off: the decoder is left as it was."""
        self._handle.remove()


def _blocks(decoder: Decoder) -> list[Block]:
    return [cast("Block", block) for block in decoder.layers]


def _narrowed(decoder: Decoder, kept: list[Places]) -> dict[str, StoredTensor]:
    weights = decoder.to_weights()
    for spec in tensor_table(decoder.config):
        if spec.layer is None or ".mlp." not in spec.name:
            continue
        index = kept[spec.layer]
        if spec.name.endswith("down.weight"):
            weights[spec.name] = pick(weights[spec.name], index, axis=1)
        elif spec.role is Role.MLP or not spec.name.endswith("down.bias"):
            weights[spec.name] = pick(weights[spec.name], index, axis=0)
    return weights
