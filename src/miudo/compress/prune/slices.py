"""Cutting rows and columns out of tensors.

For: what every structured pruner does in the end.
Not for: choosing which (`width`, `heads`, `hidden`).
Read next: `miudo.compress.prune.width`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miudo.formats.blocks import to_f32
from miudo.tensors import StoredTensor

__all__ = ["Places", "best", "multiple_of", "pick", "scaled", "spread"]

Places = npt.NDArray[np.intp]
"""What is kept, in its old order."""


def pick(tensor: StoredTensor, places: Places, *, axis: int) -> StoredTensor:
    """Returns `tensor` as F32 with these rows (axis 0) or columns (axis 1) alone."""
    return StoredTensor.from_f32(np.take(to_f32(tensor), places, axis=axis))


def scaled(tensor: StoredTensor, factor: float) -> StoredTensor:
    """Returns `tensor` as F32, multiplied by `factor`."""
    return StoredTensor.from_f32((to_f32(tensor).astype(np.float64) * factor).astype(np.float32))


def best(scores: npt.NDArray[np.float64], count: int) -> Places:
    """Returns the `count` highest places in their old order; of equals the first stay."""
    # Stable, so that equal scores keep the lower index on every machine.
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def spread(places: Places, size: int) -> Places:
    """Returns the rows of heads `places`, each of `size` rows."""
    return (places[:, None] * size + np.arange(size)).reshape(-1)


def multiple_of(multiple: int, share: float, size: int) -> int:
    """Returns a share of `size` as a multiple: at least one, `size` itself where it is less."""
    wanted = round(size * share / multiple) * multiple
    return min(max(wanted, min(multiple, size)), size)
