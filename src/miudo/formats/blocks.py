"""Numbers as they lie in files: float32 to and from F32, F16, BF16 and Q8_0.

For: readers, writers, quantisation and the decoder, which all need one rule.
Not for: choosing which tensor gets which type (`miudo.compress.quantize`).
Read next: `miudo.tensors.DType`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miudo.errors import ConfigError
from miudo.tensors import DType, StoredTensor

__all__ = ["encode", "to_f32"]

_FloatArray = npt.NDArray[np.float32]


def to_f32(tensor: StoredTensor) -> _FloatArray:
    """Returns the tensor's values in its shape; F32 shares the tensor's memory."""
    if tensor.dtype is DType.F32:
        values: _FloatArray = tensor.data.view("<f4")
    elif tensor.dtype is DType.F16:
        values = tensor.data.view("<f2").astype(np.float32)
    elif tensor.dtype is DType.BF16:
        values = (tensor.data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        blocks = tensor.data.reshape(-1, DType.Q8_0.block_bytes)
        scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
        values = blocks[:, 2:].view(np.int8) * scales
    return values.reshape(tensor.shape)


def encode(array: _FloatArray, dtype: DType) -> StoredTensor:
    """Returns `array` stored as `dtype`, rounded to nearest, F16 and BF16 ties to even.

    Q8_0, bit for bit as llama.cpp's reference: a block's scale is its greatest magnitude / 127,
    ties go away from zero. Raises ConfigError if rows are no whole blocks.
    """
    if not dtype.fits(array.shape):
        raise ConfigError(f"rows of {array.shape[-1:]} values do not fit {dtype}")
    if dtype is DType.F32:
        return StoredTensor.from_f32(array)
    flat = np.ascontiguousarray(array, dtype=np.float32).reshape(-1)
    if dtype is DType.F16:
        data = flat.astype("<f2").view(np.uint8)
    elif dtype is DType.BF16:
        data = _bf16(flat).view(np.uint8)
    else:
        data = _q8_0(flat.reshape(-1, DType.Q8_0.block))
    return StoredTensor(dtype, array.shape, data)


def _bf16(flat: _FloatArray) -> npt.NDArray[np.uint16]:
    bits = flat.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Rounding up the mantissa of a NaN could make an infinity of it.
    return np.where(np.isnan(flat), 0x7FC0, rounded).astype("<u2")


def _q8_0(blocks: _FloatArray) -> npt.NDArray[np.uint8]:
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    out = np.empty((len(blocks), DType.Q8_0.block_bytes), dtype=np.uint8)
    out[:, :2] = scale.astype("<f2").view(np.uint8)
    scaled = blocks * inverse
    whole = np.trunc(scaled)
    # Adding 0.5 before cutting would round 0.49999997 up.
    away = np.where(np.abs(scaled - whole) >= np.float32(0.5), np.sign(scaled), np.float32(0))
    out[:, 2:] = (whole + away).astype(np.int8).view(np.uint8)
    return out.reshape(-1)
