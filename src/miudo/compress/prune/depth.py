"""Depth pruning: whole blocks go, the model gets shallower.

For: dropping the blocks that change the residual stream, or the loss, least.
Not for: narrower blocks (`miudo.compress.prune.width`) or getting quality back
(`miudo.compress.prune.recover`).
Read next: `miudo.compress.prune.width`.

Shapes: B batch, T positions, D d_model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from miudo.compress.method import Report, check_finite, check_seen, describe, in_range
from miudo.compress.prune.repair import Origin
from miudo.decoder.attention import Capture
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError, DataError
from miudo.limits import LIMITS
from miudo.tensors import tensor_table

__all__ = [
    "DepthPruning",
    "DepthScore",
    "DepthStatistics",
    "mean_loss",
    "with_layers",
    "without_layers",
]


class DepthScore(StrEnum):
    """How a block's worth is measured.

    `influence`: 1 - cos(stream before, stream after), the mean over tokens (ShortGPT, Men et
    al. 2024): one pass. `loss`: the loss without the block, scored anew after each removal:
    as many passes as blocks times removals, and safer for shallow models.
    """

    INFLUENCE = "influence"
    LOSS = "loss"


@dataclass(frozen=True, slots=True)
class DepthStatistics:
    """`scores` a block (low: little worth), `removal` the blocks to drop, first one first."""

    scores: tuple[float, ...]
    removal: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class DepthPruning:
    """Drops `drop` blocks. Raises ConfigError for a value out of range."""

    name: ClassVar[str] = "depth"
    needs_calibration: ClassVar[bool] = True

    drop: int = 1
    score: DepthScore = DepthScore.INFLUENCE

    def __post_init__(self) -> None:
        in_range("drop", self.drop, 1, LIMITS.n_layers - 1, whole=True)

    def calibrate(self, decoder: Decoder, batches: Iterable[Tensor]) -> DepthStatistics:
        """Returns each block's score on ids [B, T], and which blocks would go.

        Raises ConfigError if no block would be left, DataError if no token was seen.
        """
        check_finite(decoder)
        _check_leaves_one(self.drop, decoder)
        if self.score is DepthScore.INFLUENCE:
            scores, tokens = _influence(decoder, batches)
            removal = tuple(sorted(range(len(scores)), key=lambda i: scores[i])[: self.drop])
        else:
            scores, removal, tokens = _leave_one_out(decoder, list(batches), self.drop)
        return DepthStatistics(scores, removal, tokens)

    def apply(
        self, decoder: Decoder, statistics: DepthStatistics | None = None
    ) -> tuple[Decoder, Report]:
        """Returns the decoder without the blocks that `statistics` names, and the report."""
        if statistics is None:
            raise DataError("needs calibration", where=self.name, remedy="Call calibrate first")
        check_seen(self.name, statistics.tokens)
        check_finite(decoder)
        _check_leaves_one(self.drop, decoder)
        pruned = without_layers(decoder, statistics.removal)
        kept = _kept(decoder.config.n_layers, statistics.removal)
        report = describe(
            self,
            decoder.config,
            pruned.config,
            reasons={"": "its block was dropped"},
            renamed=_renamed(decoder, kept),
            notes=(
                f"blocks dropped: {sorted(statistics.removal)}, by {self.score} over "
                f"{statistics.tokens} tokens",
                f"blocks kept, in order: {kept}",
            ),
        )
        return pruned, dataclasses.replace(report, layers=tuple(kept))

    def origin(self, decoder: Decoder, statistics: DepthStatistics) -> Origin:
        """Returns where layers and channels come from."""
        return Origin(layers=tuple(_kept(decoder.config.n_layers, statistics.removal)))


def without_layers(decoder: Decoder, removal: Sequence[int]) -> Decoder:
    """Returns a new decoder with the blocks in `removal` left out."""
    return with_layers(decoder, _kept(decoder.config.n_layers, removal))


def with_layers(decoder: Decoder, kept: Sequence[int]) -> Decoder:
    """Returns a new decoder of the blocks `kept`, in rising order.

    Raises ConfigError for blocks that are not there, or out of order.
    """
    n_layers = decoder.config.n_layers
    if not kept or list(kept) != sorted({*kept} & {*range(n_layers)}):
        raise ConfigError(
            f"blocks {list(kept)} of {n_layers}",
            where="layers",
            remedy=f"Name each once, from 0 to {n_layers - 1}, in order",
        )
    layers = tuple(decoder.config.layers[i] for i in kept)
    config = dataclasses.replace(decoder.config, layers=layers)
    weights = decoder.to_weights()
    names = _renamed(decoder, kept)
    return Decoder.from_weights(
        config, {new: weights[old] for old, new in names.items() if new is not None}
    )


def _kept(n_layers: int, removal: Sequence[int]) -> list[int]:
    gone = set(removal)
    return [i for i in range(n_layers) if i not in gone]


def _renamed(decoder: Decoder, kept: Sequence[int]) -> dict[str, str | None]:
    """Every old tensor name to its new one, None where its block is gone."""
    place = {old: new for new, old in enumerate(kept)}
    names: dict[str, str | None] = {}
    for spec in tensor_table(decoder.config):
        if spec.layer is None:
            names[spec.name] = spec.name
        elif spec.layer in place:
            rest = spec.name.removeprefix(f"layers.{spec.layer}.")
            names[spec.name] = f"layers.{place[spec.layer]}.{rest}"
        else:
            names[spec.name] = None
    return names


@torch.no_grad()
def _influence(decoder: Decoder, batches: Iterable[Tensor]) -> tuple[tuple[float, ...], int]:
    total = torch.zeros(decoder.config.n_layers, dtype=torch.float64)
    tokens = 0
    for ids in batches:  # B T
        capture = Capture()
        decoder(ids, capture=capture)
        for i, (before, after) in enumerate(
            zip(capture.hidden[:-1], capture.hidden[1:], strict=True)  # B T D
        ):
            total[i] += (1.0 - F.cosine_similarity(before, after, dim=-1)).double().sum()
        tokens += ids.numel()
    check_seen("depth", tokens)
    return tuple((total / tokens).tolist()), tokens


@torch.no_grad()
def _leave_one_out(
    decoder: Decoder, batches: Sequence[Tensor], drop: int
) -> tuple[tuple[float, ...], tuple[int, ...], int]:
    """Greedy: after each removal the blocks that are left are scored again."""
    tokens = sum(ids.numel() for ids in batches)
    check_seen("depth", tokens)
    first: tuple[float, ...] = ()
    gone: list[int] = []
    for _ in range(drop):
        left = _kept(decoder.config.n_layers, gone)
        losses = [mean_loss(without_layers(decoder, [*gone, i]), batches) for i in left]
        first = first or tuple(losses)
        gone.append(left[losses.index(min(losses))])
    return first, tuple(gone), tokens


@torch.no_grad()
def mean_loss(decoder: Decoder, batches: Sequence[Tensor]) -> float:
    """Returns the mean cross-entropy in nats a token of ids [B, T], each row on its own."""
    total, count = 0.0, 0
    for ids in batches:  # B T
        for row in ids:  # one row at a time: [T, V] is all that lives
            logits = decoder.logits(decoder(row[None, :-1])).float()  # 1 T-1 V
            total += float(F.cross_entropy(logits[0], row[1:].long(), reduction="sum"))
            count += row.numel() - 1
    return total / max(count, 1)


def _check_leaves_one(drop: int, decoder: Decoder) -> None:
    n_layers = decoder.config.n_layers
    if drop >= n_layers:
        raise ConfigError(
            f"drop is {drop}, the model has {n_layers} blocks",
            remedy=f"Drop at most {n_layers - 1}",
        )
