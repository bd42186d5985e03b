"""From the layouts of files to the one that miudo has, and back: stack, split, turn, pair.

For: fused query-key-value matrices, `[in, out]` matrices, norms that lack 1, rows to skip,
GGUF's rotary row order, and layers of unequal width made uniform for programs that know only
uniform ones.
Not for: names (`miudo.families`).
Read next: `miudo.formats.hf`, `miudo.formats.gguf`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from miudo.config import ModelConfig
from miudo.errors import ModelFileError
from miudo.families.places import Source
from miudo.formats.blocks import encode, to_f32
from miudo.tensors import DType, StoredTensor, TensorSpec, Weights, tensor_table

__all__ = [
    "canonical_weights",
    "converted",
    "file_rows",
    "is_finite",
    "join",
    "pad_to_uniform",
    "pair_rows",
    "split",
    "stored_dtype",
]

_LARGEST_F16 = 65504.0


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


def is_finite(tensor: StoredTensor) -> bool:
    """Whether no value of `tensor` is NaN or infinite."""
    # min and max pass NaN and infinity on, without an array of flags as large as the tensor.
    low, high = _range(tensor)
    return bool(np.isfinite(low) and np.isfinite(high))


def stored_dtype(spec: TensorSpec, tensor: StoredTensor, wanted: DType) -> tuple[DType, str]:
    """Returns the type in which a file holds a tensor, and why it is not the wanted one.

    The one rule for every writer: norms and biases are F32, rows that `wanted` does not fit or
    that tolerate no blocks F16, and values beyond float16's range F32.
    """
    if spec.lowest is DType.F32:
        return DType.F32, ""  # norms and biases: few bytes, much harm
    dtype, why = wanted, ""
    if wanted.block > 1 and spec.lowest is not wanted:
        dtype, why = DType.F16, f"a {spec.role} table does not tolerate {wanted}"
    elif not wanted.fits(spec.shape):
        dtype = DType.F16
        why = f"rows of {spec.shape[-1]} are no whole blocks of {wanted.block}"
    # An F16 tensor would become infinite, and one such value leaves nothing of the rest of its
    # block. What lies so already is kept: its values are what they are.
    safe = (tensor.dtype, DType.F32, DType.BF16)
    if dtype not in safe and _largest(tensor) > _LARGEST_F16:
        return DType.F32, "it holds values beyond float16's range"
    return dtype, why


def converted(name: str, tensor: StoredTensor, dtype: DType) -> StoredTensor:
    """Returns `tensor` as `dtype`. Raises ModelFileError for values that it cannot hold."""
    low, high = _range(tensor)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ModelFileError(
            "is not finite", where=f"tensor {name}", remedy="Repair the model: nothing was written"
        )
    if tensor.dtype is dtype:
        return tensor
    if dtype is DType.F16 and (largest := _largest(tensor)) > _LARGEST_F16:
        raise ModelFileError(
            f"holds {largest}, the largest {dtype} is {_LARGEST_F16}",
            where=f"tensor {name}",
            remedy="Write the model as F32 or BF16",
        )
    return encode(to_f32(tensor), dtype)


def _largest(tensor: StoredTensor) -> float:
    values = to_f32(tensor)
    return max(-float(values.min()), float(values.max())) if values.size else 0.0


def _range(tensor: StoredTensor) -> tuple[float, float]:
    """Bounds that are finite if all values are; for Q8_0 those of its scales."""
    if tensor.dtype is DType.Q8_0:  # quants are finite whatever they are; scales may not be
        scales = tensor.data.reshape(-1, tensor.dtype.block_bytes)[:, :2]
        values: npt.NDArray[np.generic] = np.ascontiguousarray(scales).view("<f2")
    elif tensor.dtype is DType.F16:
        values = tensor.data.view("<f2")
    else:
        values = to_f32(tensor)
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


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
    if source.plus:
        stored = StoredTensor.from_f32(to_f32(stored) + np.float32(source.plus))
    data = _rows(stored, transposed=source.transposed)[source.skipped :]
    if source.groups > 1:
        data = data[np.argsort(file_rows(source, rows))]
    start = 0
    for target, n in zip(source.targets, rows, strict=True):
        part = np.ascontiguousarray(data[start : start + n]).reshape(-1).view(np.uint8)
        yield target, StoredTensor(stored.dtype, shapes[target], part)
        start += n


def join(source: Source, weights: Weights) -> StoredTensor:
    """Returns the tensor that a file holds for `source`, made of canonical ones."""
    parts = [weights[t] for t in source.targets]
    moved = source.transposed or source.skipped or source.groups > 1
    if len({p.dtype for p in parts}) > 1 or source.plus:
        parts = [encode(to_f32(p) - np.float32(source.plus), DType.F32) for p in parts]
    if len(parts) == 1 and not moved:
        return parts[0]
    stacked = np.concatenate([_rows(p) for p in parts])  # rows, bytes or elements of a row
    if source.groups > 1:
        stacked = stacked[file_rows(source, [p.shape[0] for p in parts])]
    if source.skipped:
        none = np.zeros((source.skipped, *stacked.shape[1:]), stacked.dtype)
        stacked = np.concatenate([none, stacked])
    shape = (len(stacked), *parts[0].shape[1:])
    whole = StoredTensor(parts[0].dtype, shape, stacked.reshape(-1).view(np.uint8))
    if source.transposed:
        turned = np.ascontiguousarray(_rows(whole, transposed=True)).reshape(-1).view(np.uint8)
        return StoredTensor(whole.dtype, tuple(reversed(shape)), turned)
    return whole


def _rows(stored: StoredTensor, *, transposed: bool = False) -> npt.NDArray[np.generic]:
    """The tensor as an array whose first axis is the out axis; elements, or bytes of blocks."""
    if stored.dtype.block == 1:
        unit = np.dtype(f"<u{stored.dtype.block_bytes}")
        elements = stored.data.view(unit).reshape(stored.shape)
        return elements.T if transposed else elements
    if transposed:
        raise ModelFileError(f"{stored.dtype} cannot be turned: its blocks lie along rows")
    return stored.data.reshape(stored.shape[0], -1)


def pair_rows(stored: StoredTensor, n_heads: int, *, inverse: bool = False) -> StoredTensor:
    """Returns query or key rows (or biases) as GGUF "llama" has them, or back.

    There row 2i and 2i + 1 of a head are turned together; in folders row i and i + half.
    """
    rows = stored.data.reshape(stored.shape[0], -1)  # rows, bytes of a row
    half = stored.shape[0] // n_heads // 2
    grid = (n_heads, half, 2) if inverse else (n_heads, 2, half)
    moved = rows.reshape(*grid, -1).swapaxes(1, 2)
    return StoredTensor(stored.dtype, stored.shape, np.ascontiguousarray(moved).reshape(-1))


def pad_to_uniform(
    config: ModelConfig, weights: Weights
) -> tuple[ModelConfig, Weights, tuple[str, ...]]:
    """Returns config and weights with every layer's d_ff as wide as the widest, and notes.

    Exact: the added columns of `down` are zero, and zeros are zeros in every number type.
    """
    widths = [layer.d_ff for layer in config.layers]
    if len(set(widths)) == 1:
        return config, weights, ()
    blocks = max(tensor.dtype.block for tensor in weights.values())
    widest = -(-max(widths) // blocks) * blocks
    layers = tuple(dataclasses.replace(layer, d_ff=widest) for layer in config.layers)
    wide = dataclasses.replace(config, layers=layers)
    shapes = {spec.name: spec.shape for spec in tensor_table(wide)}
    padded = {name: _padded(tensor, shapes[name]) for name, tensor in weights.items()}
    narrow = sum(width < widest for width in widths)
    return wide, padded, (f"{narrow} layers padded with zeros to d_ff {widest}",)


def _padded(tensor: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    if tensor.shape == shape:
        return tensor
    rows = tensor.data.reshape(-1, tensor.dtype.size_bytes(tensor.shape[-1:]))
    n_rows = shape[0] if len(shape) > 1 else 1
    grown = np.zeros((n_rows, tensor.dtype.size_bytes(shape[-1:])), dtype=np.uint8)
    grown[: rows.shape[0], : rows.shape[1]] = rows
    return StoredTensor(tensor.dtype, shape, grown.reshape(-1))
