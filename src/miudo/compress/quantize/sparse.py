"""What a quantiser rounded, stored without its zeros.

For: the last step after any quantiser, on a model that was pruned before.
Not for: making zeros. Read next: `miudo.formats.sparse`, which says when it pays.
"""

from __future__ import annotations

import dataclasses

from miudo.compress.method import Report, TensorChange
from miudo.config import ModelConfig
from miudo.formats.sparse import sparse_weights, zeros_of
from miudo.tensors import StoredTensor, Weights

__all__ = ["without_zeros"]


def without_zeros(config: ModelConfig, stored: Weights, report: Report) -> tuple[Weights, Report]:
    """Returns `stored` with sparse matrices where they are smaller, and the report of that.

    The values are what they were. A note tells how many became sparse, and how many zeros they
    hold, or that none did.
    """
    sparse = sparse_weights(config, stored)
    moved = {name: t for name, t in sparse.items() if t.dtype is not stored[name].dtype}
    saved = sum(stored[name].size_bytes - t.size_bytes for name, t in moved.items())
    changes = tuple(_moved(change, moved.get(change.name)) for change in report.changes)
    note = f"{len(moved)} matrices are stored sparse, {zeros_of(moved):.1%} of them zeros"
    if not moved:
        note = "no matrix has enough zeros to be smaller without them: none is stored sparse"
    made = dataclasses.replace(
        report,
        bytes_after=report.bytes_after - saved,
        changes=changes,
        notes=(*report.notes, note),
    )
    return sparse, made


def _moved(change: TensorChange, to: StoredTensor | None) -> TensorChange:
    if to is None:
        return change
    return dataclasses.replace(change, dtype_after=to.dtype, sparse_bytes=to.size_bytes)
