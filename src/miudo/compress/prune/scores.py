"""Masks from weights and inputs alone: magnitude and Wanda, which change no weight that stays.

For: the two baselines that every other way of pruning single weights is measured by.
Not for: making up for what went (`miudo.compress.prune.sparsegpt`).
Read next: `miudo.compress.prune.sparsegpt`.

Shapes: O outputs, I inputs of a matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miudo.compress.prune.pattern import Pattern
from miudo.compress.station import Gram

__all__ = ["magnitude", "wanda"]


def magnitude(weight: Tensor, pattern: Pattern) -> Tensor:
    """Returns weight [O, I] with its smallest values set to zero, chosen over the whole matrix."""
    return _without(weight, pattern.mask(weight.detach().abs(), by_row=False))


def wanda(weight: Tensor, gram: Gram, pattern: Pattern) -> Tensor:
    """Returns weight [O, I] without what has the lowest |W_ij| * ||X_j|| of each row.

    Sun et al. (2023): rows are compared with themselves alone.
    """
    norms = gram.outer.diagonal().sqrt()  # I
    return _without(weight, pattern.mask(weight.detach().double().abs() * norms, by_row=True))


def _without(weight: Tensor, gone: Tensor) -> Tensor:
    return torch.where(gone, 0.0, weight.detach())
