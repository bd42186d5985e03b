"""From the layouts of files to the one that miudo has, and back: stack, split, turn, pair.

For: fused query-key-value matrices, `[in, out]` matrices, GGUF's rotary row order.
Not for: names (`miudo.families`), layers made uniform (`miudo.formats.padding`).
Read next: `miudo.formats.hf`, `miudo.formats.gguf`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from miudo.config import ModelConfig
from miudo.errors import ModelFileError
from miudo.families.places import Source
from miudo.formats.blocks import encode, to_f32
from miudo.formats.derived import DerivedTensor
from miudo.tensors import DType, StoredTensor, Weights, tensor_table

__all__ = [
    "canonical_weights",
    "file_rows",
    "join",
    "pair_rows",
    "split",
]

_Bytes = npt.NDArray[np.uint8]


def canonical_weights(
    wanted: tuple[Source, ...], stored: Weights, config: ModelConfig, where: object
) -> Weights:
    """Returns the tensors of a file as the tensor table of `config` names and orders them.

    Raises ModelFileError listing every tensor that is missing, unknown or misshapen.
    """
    names = {source.name for source in wanted}
    wrong = [f"{n} is missing" for n in sorted(names - stored.keys())]
    wrong += [f"{n} is unknown" for n in sorted(stored.keys() - names)]
    shapes = {spec.name: spec.shape for spec in tensor_table(config)}
    weights: dict[str, StoredTensor] = {}
    for source in wanted:
        if source.name in stored:
            try:
                weights.update(split(source, stored[source.name], shapes))
            except ModelFileError as error:
                wrong.append(f"{source.name} {error.what}")
    if wrong:
        raise ModelFileError(
            "; ".join(wrong), where=where, remedy="Config and weights must be of one model"
        )
    return {name: weights[name] for name in shapes}


def file_rows(source: Source, rows: Sequence[int]) -> npt.NDArray[np.intp]:
    """Returns where each row of the file lies in the stack of targets of `rows` each.

    Raises ModelFileError if the rows cannot be shared out.
    """
    if any(n % source.groups for n in rows):
        raise ModelFileError(f"{list(rows)} rows are not for {source.groups} heads")
    ends = np.cumsum(rows)
    parts = [
        np.arange(end - n, end).reshape(source.groups, -1)
        for n, end in zip(rows, ends, strict=True)
    ]
    return np.concatenate(parts, axis=1).reshape(-1)


def split(
    source: Source, stored: StoredTensor, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, StoredTensor]]:
    """Yields the canonical tensors inside `stored`; shares its memory where nothing moves.

    Raises ModelFileError, naming both shapes, if it is not what `shapes` add up to.
    """
    rows = [shapes[t][0] for t in source.targets]
    wanted = (source.skipped + sum(rows), *shapes[source.targets[0]][1:])
    shape = tuple(reversed(stored.shape)) if source.transposed else stored.shape
    if shape != wanted:
        held = list(reversed(wanted)) if source.transposed else list(wanted)
        raise ModelFileError(
            f"is {list(stored.shape)}, the config wants {held}", where=f"tensor {source.name}"
        )
    if len(shape) == 1 and stored.dtype.block > 1:
        raise ModelFileError(f"is a vector of {stored.dtype}: blocks are for matrices")
    if source.plus:
        stored = StoredTensor.from_f32(to_f32(stored) + np.float32(source.plus))
    order = np.argsort(file_rows(source, rows)) + source.skipped if source.groups > 1 else None
    start = 0
    for target, n in zip(source.targets, rows, strict=True):
        end = start + n
        if order is None:
            yield target, _part(source, stored, source.skipped + start, source.skipped + end)
        else:
            lying = _turned(stored, 0, shape[0]) if source.transposed else stored
            yield target, _picked(lying, order[start:end])
        start = end


def join(source: Source, weights: Weights) -> StoredTensor:
    """Returns the tensor that a file holds for `source`, made of canonical ones."""
    parts = [weights[t] for t in source.targets]
    plain = {p.dtype for p in parts} != {parts[0].dtype} or source.plus
    moved = source.transposed or source.skipped or source.groups > 1
    if len(parts) == 1 and not (plain or moved):
        return parts[0]
    dtype = DType.F32 if plain else parts[0].dtype
    rows = [p.shape[0] for p in parts]
    shape = (source.skipped + sum(rows), *parts[0].shape[1:])

    def stacked(*parts: StoredTensor) -> _Bytes:
        if plain:
            parts = tuple(encode(to_f32(p) - np.float32(source.plus), dtype) for p in parts)
        width = parts[0].dtype.size_bytes(parts[0].shape[1:])
        lines = np.concatenate([p.data.reshape(-1, width) for p in parts])
        if source.groups > 1:
            lines = lines[file_rows(source, rows)]
        if source.skipped:
            lines = np.concatenate([np.zeros((source.skipped, width), np.uint8), lines])
        return lines.reshape(-1)

    whole = DerivedTensor(dtype, shape, stacked, *parts)
    return _turned(whole, 0, shape[-1]) if source.transposed else whole


def _part(source: Source, stored: StoredTensor, start: int, end: int) -> StoredTensor:
    """Rows [start, end) of what is stored, columns of what is stored turned."""
    if source.transposed:
        return _turned(stored, start, end)
    if end - start == stored.shape[0]:
        return stored
    row = stored.dtype.size_bytes(stored.shape[1:])
    shape = (end - start, *stored.shape[1:])
    return StoredTensor(stored.dtype, shape, stored.data[start * row : end * row])


def _picked(stored: StoredTensor, rows: npt.NDArray[np.intp]) -> StoredTensor:
    """These rows of what is stored."""
    width, shape = stored.dtype.size_bytes(stored.shape[1:]), (len(rows), *stored.shape[1:])

    def picked(tensor: StoredTensor) -> _Bytes:
        return tensor.data.reshape(-1, width)[rows].reshape(-1)

    return DerivedTensor(stored.dtype, shape, picked, stored)


def _turned(stored: StoredTensor, start: int, end: int) -> StoredTensor:
    """Columns [start, end) of a matrix as rows."""
    if stored.dtype.block > 1:
        raise ModelFileError(f"{stored.dtype} cannot be turned: its blocks lie along rows")

    def turned(tensor: StoredTensor) -> _Bytes:
        elements = tensor.data.view(f"<u{tensor.dtype.block_bytes}").reshape(tensor.shape)
        return np.ascontiguousarray(elements[:, start:end].T).reshape(-1).view(np.uint8)

    return DerivedTensor(stored.dtype, (end - start, stored.shape[0]), turned, stored)


def pair_rows(stored: StoredTensor, n_heads: int, *, inverse: bool = False) -> StoredTensor:
    """Returns query or key rows (or biases) as GGUF "llama" has them, or back.

    There row 2i and 2i + 1 of a head are turned together; in folders row i and i + half.
    """
    row, half = stored.dtype.size_bytes(stored.shape[1:]), stored.shape[0] // n_heads // 2
    grid = (n_heads, half, 2, row) if inverse else (n_heads, 2, half, row)

    def moved(tensor: StoredTensor) -> _Bytes:
        heads = tensor.data.reshape(grid)
        return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(-1)

    return DerivedTensor(stored.dtype, stored.shape, moved, stored)
