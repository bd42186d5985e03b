"""Blocks made of scales and codes that somebody else has chosen: nothing is searched for.

For: methods that train or solve for scales and codes, whose file must hold those very numbers.
Not for: finding them (`miudo.formats.blocks`), or other codes for blocks that are there
(`miudo.formats.grid`).
Read next: `miudo.formats.blocks_k`, which reads the fields that are written here.

Shapes: n blocks, p parts of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from miudo.formats.block_codec import ByteArray, pack
from miudo.formats.blocks import CODECS
from miudo.tensors import DType

__all__ = ["blocks_of"]

_Whole = npt.NDArray[np.int8]
_Halves = npt.NDArray[np.float16]


def blocks_of(
    dtype: DType,
    codes: ByteArray,
    d: _Halves,
    m: _Halves | None = None,
    scale_steps: _Whole | None = None,
    offset_steps: _Whole | None = None,
) -> ByteArray:
    """Returns the bytes of blocks with codes [n, block], the places in the type's levels.

    `d` and `m` [n] are a block's scale and offset, or in blocks of 256 the steps of which the
    parts' scales and offsets are `scale_steps` and `offset_steps` [n, p], whole numbers; offsets
    of these lower. What a type has no field for is None.
    """
    codec = CODECS[dtype]
    blocks = np.empty(len(codes), dtype=codec.fields)
    columns = codec.put(codes) | {"d": d}
    if m is not None:
        columns["m"] = m
    if scale_steps is not None:
        columns["s"] = _STEPS[dtype](scale_steps, offset_steps)
    for name in codec.fields.names or ():
        blocks[name] = columns[name]
    return blocks.view(np.uint8)


def _fours(scales: _Whole, offsets: _Whole | None) -> ByteArray:
    low = scales.astype(np.uint8)
    return low if offsets is None else low | offsets.astype(np.uint8) << np.uint8(4)


def _sixes(scales: _Whole, offsets: _Whole | None) -> ByteArray:
    raised = (scales.astype(np.int16) + 32).astype(np.uint8)  # 0 to 63
    low, high = pack(raised & np.uint8(15), 8, 4), pack(raised >> np.uint8(4), 4, 2)
    return np.concatenate([low, high], axis=1)


def _six_bit_pairs(scales: _Whole, offsets: _Whole | None) -> ByteArray:
    s = scales.astype(np.uint8)
    o = np.zeros_like(s) if offsets is None else offsets.astype(np.uint8)
    four, six = np.uint8(4), np.uint8(6)
    first = s[:, :4] | s[:, 4:] >> four << six
    second = o[:, :4] | o[:, 4:] >> four << six
    return np.concatenate([first, second, (s[:, 4:] & np.uint8(15)) | o[:, 4:] << four], axis=1)


def _bytes(scales: _Whole, offsets: _Whole | None) -> ByteArray:
    return scales.astype(np.int8).view(np.uint8)


_STEPS: Mapping[DType, Callable[[_Whole, _Whole | None], ByteArray]] = {
    DType.Q2_K: _fours,
    DType.Q3_K: _sixes,
    DType.Q4_K: _six_bit_pairs,
    DType.Q5_K: _six_bit_pairs,
    DType.Q6_K: _bytes,
}
