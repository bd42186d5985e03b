"""How many weights each block loses, where not all lose the same share.

For: shares a block that keep the whole's: more zeros where they do less harm.
Not for: N:M patterns, which are one share by nature.
Read next: `miudo.compress.prune.sparse`.

Shapes: L blocks; O outputs, I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn

from miudo.compress.prune.depth import mean_loss
from miudo.compress.prune.pattern import Pattern
from miudo.compress.prune.scores import magnitude
from miudo.compress.walk import walk
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError

__all__ = ["Allocation", "allocate"]

_OUTLIER = 5.0
"""How many times the mean a score must be to count, as in the paper."""


class Allocation(StrEnum):
    """How shares are given out.

    `uniform`: all alike. `outliers`: a block keeps more the more of its |W_ij| ||X_j|| are above
    five times their mean (OWL, Yin et al. 2023). `loss`: it keeps more the more the loss rises
    when it alone is pruned by magnitude: a pass a block.
    """

    UNIFORM = "uniform"
    OUTLIERS = "outliers"
    LOSS = "loss"


def allocate(
    decoder: Decoder,
    batches: Sequence[Tensor],
    pattern: Pattern,
    allocation: Allocation,
    spread: float,
) -> tuple[float, ...]:
    """Returns each block's share of zeros [L], within about `spread` of the pattern's.

    Their mean, weighed by the blocks' sizes, is the pattern's own share. Raises ConfigError where
    a share would be nothing or all.
    """
    sizes = [sum(m.weight.numel() for m in _matrices(block)) for block in decoder.layers]
    if allocation is Allocation.UNIFORM:
        return (pattern.share,) * len(sizes)
    if pattern.group is not None:
        raise ConfigError(
            f"allocation is {allocation}, the pattern is N:M",
            remedy="Give a share of zeros, or the uniform allocation",
        )
    measure = _outliers if allocation is Allocation.OUTLIERS else _loss_rises
    shares = _centred(measure(decoder, batches, pattern), sizes, pattern.share, spread)
    if not all(0.0 < share < 1.0 for share in shares):
        raise ConfigError(
            f"shares of zeros would be {min(shares):.3f} to {max(shares):.3f}",
            remedy="Give a smaller spread",
        )
    return shares


def _centred(
    worth: Sequence[float], sizes: Sequence[int], share: float, spread: float
) -> tuple[float, ...]:
    """The worth a block as shares: the least worthy loses 2 `spread` more than the worthiest."""
    low, high = min(worth), max(worth)
    kept = [0.0 if high == low else 2 * spread * (w - low) / (high - low) for w in worth]
    mean = sum(k * size for k, size in zip(kept, sizes, strict=True)) / sum(sizes)
    return tuple(share - (k - mean) for k in kept)


@torch.no_grad()
def _outliers(decoder: Decoder, batches: Sequence[Tensor], _: Pattern) -> list[float]:
    found = []
    for station in walk(decoder, batches):
        if station.name == "head":
            break
        grams = station.grams()
        scores = torch.cat(
            [
                (weight.double().abs() * grams[name].outer.diagonal().sqrt()).flatten()
                for name, weight in station.weights.items()
            ]
        )
        found.append(float((scores > _OUTLIER * scores.mean()).double().mean()))
    return found


@torch.no_grad()
def _loss_rises(decoder: Decoder, batches: Sequence[Tensor], pattern: Pattern) -> list[float]:
    trial = Decoder.from_weights(decoder.config, decoder.to_weights())
    whole, found = mean_loss(trial, batches), []
    for block in trial.layers:
        kept = [module.weight.clone() for module in _matrices(block)]
        for module in _matrices(block):
            module.weight.copy_(magnitude(module.weight, pattern))
        found.append(mean_loss(trial, batches) - whole)
        for module, weight in zip(_matrices(block), kept, strict=True):
            module.weight.copy_(weight)
    return found


def _matrices(block: nn.Module) -> list[nn.Linear]:
    return [module for module in block.modules() if isinstance(module, nn.Linear)]
