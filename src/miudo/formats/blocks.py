"""Numbers as they lie in files: float32 to and from every type of `DType`.

For: readers, writers, quantisation and the decoder, which all need one rule.
Not for: choosing which tensor gets which type (`miudo.compress.quantize`).
Read next: `miudo.formats.blocks_32` and `miudo.formats.blocks_k`, where the bits are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from miudo.errors import ConfigError
from miudo.formats.block_codec import Codec, FloatArray
from miudo.formats.blocks_32 import CODECS_32
from miudo.formats.blocks_iq4 import CODECS_IQ4
from miudo.formats.blocks_k import CODECS_K
from miudo.formats.blocks_ternary import CODECS_TERNARY
from miudo.formats.sparse import as_dense
from miudo.tensors import DType, StoredTensor

__all__ = [
    "CODECS",
    "WRITABLE",
    "check_writable",
    "encode",
    "f32_chunks",
    "is_finite",
    "largest",
    "recode",
    "to_f32",
]

CODECS: Mapping[DType, Codec] = {
    **CODECS_32, **CODECS_K, **CODECS_IQ4, **CODECS_TERNARY,
}  # fmt: skip
"""How each type of blocks lies in files."""

_PLAIN = {DType.F32: "<f4", DType.F16: "<f2"}

WRITABLE = (
    DType.F32, DType.F16, DType.BF16, *(t for t, codec in CODECS.items() if codec.fit),
)  # fmt: skip
"""Types that `encode` knows; the others are only read."""

# Values converted together: whole blocks of every type, and few enough to stay in a cache.
_CHUNK = 1 << 16
# Of the mean: an input that calibration never saw may still come.
_LEAST_IMPORTANCE = 1e-4
_CHUNKS_A_THREAD = 2  # fewer are done before a thread is there


def to_f32(tensor: StoredTensor) -> FloatArray:
    """Returns the tensor's values in its shape; F32 shares the tensor's memory."""
    tensor = as_dense(tensor)
    data = tensor.data
    if tensor.dtype is DType.F32:
        return data.view("<f4").reshape(tensor.shape)
    values = np.empty(tensor.shape, dtype=np.float32)
    flat, end = values.reshape(-1), 0
    for chunk in _decoded(tensor.dtype, data):
        start, end = end, end + chunk.size
        flat[start:end] = chunk
    return values


def f32_chunks(tensor: StoredTensor) -> Iterator[FloatArray]:
    """Yields the tensor's values in order as flat arrays of some ten thousand."""
    tensor = as_dense(tensor)
    return _decoded(tensor.dtype, tensor.data)


def encode(array: FloatArray, dtype: DType, importance: FloatArray | None = None) -> StoredTensor:
    """Returns `array` [..., I] stored as `dtype`, rounded to nearest, F16 and BF16 ties to even.

    Blocks of 32 values come out bit for bit as of llama.cpp's reference, those of 256 with an
    error as small. With `importance` [I], the mean square of each input of a matrix, scales are
    those whose sum of importance * (value - stored)^2 is least; plain types have none. Raises
    ConfigError if rows are no whole blocks, the type is only read, or `importance` is no
    weighting of I columns.
    """
    if dtype is DType.F32:
        return StoredTensor.from_f32(array)
    return recode(StoredTensor.from_f32(np.asarray(array, dtype=np.float32)), dtype, importance)


def recode(
    tensor: StoredTensor, dtype: DType, importance: FloatArray | None = None
) -> StoredTensor:
    """Returns `tensor` as another type, as `encode` would, never holding all of it as float32.

    Large tensors are shared out over the cores that this process may use.
    """
    check_writable(dtype)
    if not dtype.fits(tensor.shape):
        raise ConfigError(f"rows of {tensor.shape[-1:]} values do not fit {dtype}")
    weights = None if importance is None else _weights(importance, tensor.shape[-1])
    tensor = as_dense(tensor)
    given, data = tensor.data, np.empty(dtype.size_bytes(tensor.shape), dtype=np.uint8)
    taken, made = (_CHUNK // t.block * t.block_bytes for t in (tensor.dtype, dtype))

    def fill(chunks: range) -> None:
        for i in chunks:
            values = _values(tensor.dtype, given[i * taken : (i + 1) * taken])
            at = None if weights is None else _repeated(weights, i * _CHUNK, values.size)
            data[i * made : (i + 1) * made] = _encoded(values, dtype, at)

    n = -(-given.size // taken)
    workers = min(len(os.sched_getaffinity(0)), n // _CHUNKS_A_THREAD)
    if workers < 2:
        fill(range(n))
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(fill, (range(i, n, workers) for i in range(workers))))
    return StoredTensor(dtype, tensor.shape, data)


def check_writable(dtype: DType) -> None:
    """Raises ConfigError for a type that is only read."""
    if dtype not in WRITABLE:
        known = ", ".join(WRITABLE)
        raise ConfigError(f"{dtype} is only read, not written", remedy=f"Write one of {known}")


def is_finite(tensor: StoredTensor) -> bool:
    """Whether no value of `tensor` is NaN or infinite."""
    tensor = as_dense(tensor)
    if tensor.dtype in CODECS:
        codec = CODECS[tensor.dtype]
        return codec.finite(tensor.data.view(codec.fields))
    return bool(np.isfinite(largest(tensor)))


def largest(tensor: StoredTensor) -> float:
    """Returns the greatest magnitude in `tensor`; NaN if it holds one, 0 if it is empty."""
    tensor = as_dense(tensor)
    if tensor.dtype in CODECS:
        return max((float(np.abs(c).max()) for c in f32_chunks(tensor)), default=0.0)
    unit = np.uint32 if tensor.dtype is DType.F32 else np.uint16
    bits: npt.NDArray[Any] = tensor.data.view(unit)
    # Without the sign bit floats are ordered as whole numbers are, NaN above infinity.
    rest, greatest = unit(np.iinfo(unit).max >> 1), unit(0)
    for start in range(0, bits.size, _CHUNK):
        greatest = max(greatest, (bits[start : start + _CHUNK] & rest).max())
    one = np.array([greatest]).view(np.uint8)
    return float(_values(tensor.dtype, one)[0])


def _decoded(dtype: DType, data: npt.NDArray[np.uint8]) -> Iterator[FloatArray]:
    size = _CHUNK // dtype.block * dtype.block_bytes
    for start in range(0, data.size, size):
        yield _values(dtype, data[start : start + size])


def _values(dtype: DType, data: npt.NDArray[np.uint8]) -> FloatArray:
    if dtype in _PLAIN:
        return data.view(_PLAIN[dtype]).astype(np.float32, copy=False)
    if dtype is DType.BF16:
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    # Files of other programs may hold scales that are infinite or no number.
    with np.errstate(invalid="ignore", over="ignore"):
        return CODECS[dtype].to_values(data).reshape(-1)


def _weights(importance: FloatArray, inputs: int) -> FloatArray:
    """Returns `importance` with a mean of 1, and nothing of it so small that a value is free."""
    given = np.asarray(importance, dtype=np.float64)
    if given.shape != (inputs,):
        raise ConfigError(f"importance is of shape {given.shape}, rows have {inputs} values")
    mean = given.mean()
    if not (np.isfinite(mean) and mean > 0 and (given >= 0).all()):
        raise ConfigError(
            f"importance has a mean of {mean}, its least is {given.min()}",
            remedy="Give mean squares of inputs, from a calibration that saw text",
        )
    weights: FloatArray = np.maximum(given / mean, _LEAST_IMPORTANCE).astype(np.float32)
    return weights


def _repeated(weights: FloatArray, start: int, size: int) -> FloatArray:
    """Returns the weights of `size` values of rows, from the value `start` of all on."""
    first, n = start % weights.size, weights.size
    return np.tile(weights, -(-(first + size) // n))[first : first + size]


def _encoded(
    flat: FloatArray, dtype: DType, importance: FloatArray | None = None
) -> npt.NDArray[np.uint8]:
    if dtype in _PLAIN:
        return flat.astype(_PLAIN[dtype]).view(np.uint8)
    if dtype is DType.BF16:
        return _bf16(flat).view(np.uint8)
    weights = None if importance is None else importance.reshape(-1, dtype.block)
    return CODECS[dtype].to_bytes(flat.reshape(-1, dtype.block), weights)


def _bf16(flat: FloatArray) -> npt.NDArray[np.uint16]:
    bits = flat.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Rounding up the mantissa of a NaN could make an infinity of it.
    return np.where(np.isnan(flat), 0x7FC0, rounded).astype("<u2")
