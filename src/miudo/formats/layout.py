"""From the layouts of files to the one that miudo has, and back: stack, split, turn, pair.

For: fused query-key-value matrices, `[in, out]` matrices, GGUF's rotary row order, and layers
of unequal width made uniform for programs that know only uniform ones.
Not for: names (`miudo.families`).
Read next: `miudo.formats.hf`, `miudo.formats.gguf_read`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from miudo.config import ModelConfig
from miudo.errors import ModelFileError
from miudo.families.family import Source
from miudo.formats.blocks import encode, to_f32
from miudo.tensors import DType, StoredTensor, Weights, tensor_table

__all__ = ["join", "pad_to_uniform", "pair_rows", "split"]


def split(
    source: Source, stored: StoredTensor, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, StoredTensor]]:
    """Yields the canonical tensors inside `stored`; shares its memory where nothing moves.

    Raises ModelFileError, naming both shapes, if it is not what `shapes` add up to.
    """
    rows = sum(shapes[t][0] for t in source.targets)
    wanted = (rows, *shapes[source.targets[0]][1:])
    shape = tuple(reversed(stored.shape)) if source.transposed else stored.shape
    if shape != wanted:
        held = list(reversed(wanted)) if source.transposed else list(wanted)
        raise ModelFileError(
            f"is {list(stored.shape)}, the config wants {held}", where=f"tensor {source.name}"
        )
    data = _rows(stored, transposed=source.transposed)
    start = 0
    for target in source.targets:
        end = start + shapes[target][0]
        part = np.ascontiguousarray(data[start:end]).reshape(-1).view(np.uint8)
        yield target, StoredTensor(stored.dtype, shapes[target], part)
        start = end


def join(source: Source, weights: Weights) -> StoredTensor:
    """Returns the tensor that a file holds for `source`, made of canonical ones."""
    parts = [weights[t] for t in source.targets]
    if len(parts) == 1 and not source.transposed:
        return parts[0]
    if len({p.dtype for p in parts}) > 1:
        parts = [encode(to_f32(p), DType.F32) for p in parts]
    shape = (sum(p.shape[0] for p in parts), *parts[0].shape[1:])
    stacked = np.concatenate([_rows(p) for p in parts])  # rows, bytes or elements of a row
    whole = StoredTensor(parts[0].dtype, shape, stacked.reshape(-1).view(np.uint8))
    if source.transposed:
        turned = np.ascontiguousarray(_rows(whole).T).reshape(-1).view(np.uint8)
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

    Exact: the added rows of `down` columns are zero, so they add nothing.
    """
    widest = max(layer.d_ff for layer in config.layers)
    narrow = [i for i, layer in enumerate(config.layers) if layer.d_ff < widest]
    if not narrow:
        return config, weights, ()
    layers = tuple(dataclasses.replace(layer, d_ff=widest) for layer in config.layers)
    wide = dataclasses.replace(config, layers=layers)
    shapes = {spec.name: spec.shape for spec in tensor_table(wide)}
    padded = {name: _padded(tensor, shapes[name]) for name, tensor in weights.items()}
    return wide, padded, (f"{len(narrow)} layers padded with zeros to d_ff {widest}",)


def _padded(tensor: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    if tensor.shape == shape:
        return tensor
    values = np.zeros(shape, dtype=np.float32)
    values[tuple(slice(0, n) for n in tensor.shape)] = to_f32(tensor)
    return encode(values, tensor.dtype if tensor.dtype.fits(shape) else DType.F16)
