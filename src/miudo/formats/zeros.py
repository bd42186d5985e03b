"""What a model's record says of zeros, and whether its tensors still have them.

For: the zeros of a pruned model on their way from verb to verb and from form to form.
Not for: keeping them while weights change (`miudo.decoder.sparsity`).
Read next: `miudo.decoder.sparsity`, which says how a mask is told from a dense model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from miudo.errors import ModelFileError
from miudo.formats.blocks import to_f32
from miudo.records import Record
from miudo.tensors import Weights

__all__ = ["carried", "declared", "sparse_settings"]

_SPARSE = "sparse"


def sparse_settings(zeros: Mapping[str, int]) -> dict[str, Any]:
    """Returns what a record's settings say of `zeros`, counted by matrix: nothing of none."""
    return {_SPARSE: dict(zeros)} if zeros else {}


def declared(record: Record | None) -> Mapping[str, int]:
    """Returns the zeros by matrix that a model's record names, {} for a dense model's.

    The model's own record counts, not its parents': a verb that fills zeros says so by silence.
    Raises ModelFileError for what is no such table.
    """
    found: Any = {} if record is None else record.settings.get(_SPARSE, {})
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and type(zeros) is int and zeros > 0 for name, zeros in found.items()
    ):
        raise ModelFileError(
            f"{_SPARSE} in its record is no table of matrices and counts of zeros",
            remedy="Take the record that was written beside the model",
        )
    return found


def carried(record: Record | None, weights: Weights) -> dict[str, Any]:
    """Returns what the settings of a record of `weights` must say of the zeros of `record`.

    Matrices whose type has no exact zero are left out: they are dense from then on. {} where
    there is nothing to say.
    """
    kept = {}
    for name, zeros in declared(record).items():
        if name in weights and (found := int(np.sum(to_f32(weights[name]) == 0))) >= zeros:
            kept[name] = found
    return sparse_settings(kept)
