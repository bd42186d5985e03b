"""Matrices without their zeros: a bit for every weight, and numbers only where there is one.

For: pruned models that are smaller on disk and in memory, value for value what they were.
Not for: choosing what becomes zero (`miudo.compress.prune`), or rounding (`blocks`).
Read next: `native/kernels/sparse.h`, which says how they lie in memory.

A sparse matrix [R, C] has the values of a dense one in Q4_0 or Q8_0 blocks of 32. Its bytes:

    masks    R * C / 32 times uint32    bit c of a mask: whether column c of the block is kept
    scales   R * C / 32 times float16   the blocks' own
    numbers  4 or 8 bits each           signed, row after row, the low half of a byte first

Of a share `s` of zeros and `b` bits that makes 1 + (1 - s) b + 1/2 bits a weight, where dense
ones have b + 1/2: smaller for s > 1/b. Two of four kept cost as much with places of 2 bits each,
(2 b + 4) / 4, so that one form serves every pattern. Nothing here is a new tensor type: a GGUF
file holds the bytes as a vector of I8 under the architecture "miudo".

Shapes: R rows, C columns, G = C / 32 blocks a row.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from miudo.config import ModelConfig
from miudo.errors import ConfigError, ModelFileError
from miudo.formats.derived import DerivedTensor
from miudo.tensors import DType, Role, StoredTensor, Weights, tensor_table

__all__ = [
    "as_dense",
    "bits_per_weight",
    "check_sparse",
    "dense_weights",
    "sparse_weights",
    "to_sparse",
    "zeros_of",
]

_Bytes = npt.NDArray[np.uint8]

_FORMS = {dtype.dense: dtype for dtype in DType if dtype.sparse}
_BITS = {DType.SPARSE4: 4, DType.SPARSE8: 8}
_BLOCK = 32
_HEAD = 4 + 2  # bytes of a block's mask and scale
_ROWS = 1 << 16  # blocks that are turned together


def bits_per_weight(dtype: DType, sparsity: float) -> float:
    """Returns the bits a weight of a sparse type takes where a share `sparsity` is zero."""
    return 1 + (1 - sparsity) * _BITS[dtype] + 16 / _BLOCK


def to_sparse(tensor: StoredTensor) -> StoredTensor:
    """Returns a Q4_0 or Q8_0 matrix without its zeros: SPARSE4 or SPARSE8, the same values.

    Zero is what the type stores as such, so also what was rounded to it. Raises ConfigError for
    other types and for what is no matrix.
    """
    dtype = _FORMS.get(tensor.dtype)
    if dtype is None or len(tensor.shape) != 2:
        raise ConfigError(
            f"a {tensor.dtype} tensor of shape {list(tensor.shape)} has no sparse form",
            remedy=f"Give a matrix of {' or '.join(_FORMS)}",
        )
    blocks = tensor.data.reshape(-1, tensor.dtype.block_bytes)
    masks, numbers = [np.empty(0, "<u4")], [np.empty(0, np.uint8)]
    for start in range(0, len(blocks), _ROWS):
        held = _numbers(tensor.dtype, blocks[start : start + _ROWS])
        kept = held != 0
        masks.append(np.packbits(kept, axis=1, bitorder="little").view("<u4").reshape(-1))
        numbers.append(held[kept])
    codes = np.concatenate(numbers)
    scales = np.ascontiguousarray(blocks[:, :2]).reshape(-1)
    parts = [np.concatenate(masks).view(np.uint8), scales, _packed(dtype, codes)]
    return StoredTensor(dtype, tensor.shape, np.concatenate(parts))


def as_dense(tensor: StoredTensor) -> StoredTensor:
    """Returns a sparse tensor with its zeros, as Q4_0 or Q8_0; any other as it is."""
    if not tensor.dtype.sparse:
        return tensor
    dense = tensor.dtype.dense
    data, n = tensor.data, _blocks(tensor.shape)
    masks = data[: 4 * n].view("<u4")
    scales = data[4 * n : _HEAD * n].reshape(n, 2)
    blocks = np.empty((n, dense.block_bytes), dtype=np.uint8)
    blocks[:, :2] = scales
    codes = _unpacked(tensor.dtype, data[_HEAD * n :], _count(masks))
    end = 0
    for start in range(0, n, _ROWS):
        part = masks[start : start + _ROWS]
        kept = np.unpackbits(part.view(np.uint8), bitorder="little").reshape(-1, _BLOCK) != 0
        begin, end = end, end + int(np.count_nonzero(kept))
        held = np.zeros(kept.shape, dtype=np.uint8)
        held[kept] = codes[begin:end]
        blocks[start : start + _ROWS, 2:] = _stored(dense, held)
    return StoredTensor(dense, tensor.shape, blocks.reshape(-1))


def dense_weights(weights: Weights) -> Weights:
    """Returns `weights` with sparse tensors made dense when they are asked for."""

    def dense(tensor: StoredTensor) -> StoredTensor:
        if not tensor.dtype.sparse:
            return tensor
        return DerivedTensor(
            tensor.dtype.dense, tensor.shape, lambda held: as_dense(held).data, tensor
        )

    return {name: dense(tensor) for name, tensor in weights.items()}


def sparse_weights(config: ModelConfig, weights: Weights) -> dict[str, StoredTensor]:
    """Returns `weights`, the blocks' matrices sparse where that makes them smaller.

    Token table and head stay: their rows are looked up one by one.
    """
    out = dict(weights)
    for spec in tensor_table(config):
        tensor = weights[spec.name]
        if spec.role in (Role.ATTENTION, Role.MLP) and tensor.dtype in _FORMS:
            made = to_sparse(tensor)
            if made.size_bytes < tensor.size_bytes:
                out[spec.name] = made
    return out


def check_sparse(tensor: StoredTensor, where: object) -> None:
    """Raises ModelFileError unless the bytes are those that shape and masks ask for."""
    if len(tensor.shape) != 2 or not tensor.dtype.fits(tensor.shape):
        raise ModelFileError(f"{list(tensor.shape)} is no matrix of whole blocks", where=where)
    n = _blocks(tensor.shape)
    wanted, given = _HEAD * n, tensor.data.size
    if given >= wanted:
        wanted += -(-_count(tensor.data[: 4 * n].view("<u4")) * _BITS[tensor.dtype] // 8)
    if given != wanted:
        raise ModelFileError(
            f"has {given} bytes, its shape and masks ask for {wanted}",
            where=where,
            remedy="The file is damaged; fetch it again",
        )


def zeros_of(tensors: Mapping[str, StoredTensor]) -> float:
    """Returns the share of zeros in the sparse ones of `tensors`, 0 if there is none."""
    kept = total = 0
    for tensor in tensors.values():
        if tensor.dtype in _BITS:
            n = _blocks(tensor.shape)
            kept += _count(tensor.data[: 4 * n].view("<u4"))
            total += _BLOCK * n
    return 1 - kept / total if total else 0.0


def _blocks(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[1] // _BLOCK


def _count(masks: npt.NDArray[np.uint32]) -> int:
    return int(np.bitwise_count(masks).sum(dtype=np.int64))


def _numbers(dense: DType, blocks: _Bytes) -> _Bytes:
    """Blocks' numbers [blocks, 32] as two's complement, those of 4 bits in the low half."""
    if dense is DType.Q8_0:
        return np.ascontiguousarray(blocks[:, 2:])
    # Q4_0 stores 8 for zero: the low halves of 16 bytes, then the high ones.
    low, high = blocks[:, 2:] & np.uint8(15), blocks[:, 2:] >> np.uint8(4)
    return np.concatenate([low, high], axis=1) ^ np.uint8(8)


def _stored(dense: DType, numbers: _Bytes) -> _Bytes:
    if dense is DType.Q8_0:
        return numbers
    codes = numbers ^ np.uint8(8)
    return codes[:, :16] | codes[:, 16:] << np.uint8(4)


def _packed(dtype: DType, codes: _Bytes) -> _Bytes:
    if dtype is DType.SPARSE8:
        return codes
    even = np.zeros(-(-codes.size // 2) * 2, dtype=np.uint8)
    even[: codes.size] = codes
    return even[::2] | even[1::2] << np.uint8(4)


def _unpacked(dtype: DType, data: _Bytes, count: int) -> _Bytes:
    if dtype is DType.SPARSE8:
        return data
    return np.stack([data & np.uint8(15), data >> np.uint8(4)], axis=1).reshape(-1)[:count]
