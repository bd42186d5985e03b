"""The GGUF container, version 3, written.

For: keys and tensors in the order given, aligned to 32 bytes.
Not for: what keys mean (`miudo.formats.gguf`).
Read next: `miudo.formats.gguf`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np

from miudo.formats.derived import drop_pages
from miudo.formats.gguf_reader import BYTES, GGUF_TYPES
from miudo.tensors import StoredTensor

__all__ = ["write_container"]

_ALIGNMENT = 32
_NUMBER_OF = {dtype: number for number, dtype in GGUF_TYPES.items()}


def write_container(
    file: IO[bytes], keys: Mapping[str, Any], tensors: Sequence[tuple[str, StoredTensor]]
) -> None:
    """Writes a GGUF file. Python ints become uint32, floats float32, lists arrays.

    The data of one tensor after the other is asked for, once, and let go.
    """
    file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys)))
    for key, value in keys.items():
        file.write(_text(key) + _tagged(value))
    offset = 0
    for name, tensor in tensors:
        # The format names the row first. Sparse tensors are bytes: what they are, keys tell.
        sparse = tensor.dtype.sparse
        dims = (tensor.size_bytes,) if sparse else tuple(reversed(tensor.shape))
        number = BYTES if sparse else _NUMBER_OF[tensor.dtype]
        file.write(_text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        file.write(struct.pack("<IQ", number, offset))
        offset += -(-tensor.size_bytes // _ALIGNMENT) * _ALIGNMENT
    file.write(b"\0" * (-file.tell() % _ALIGNMENT))
    for _, tensor in tensors:
        data = np.ascontiguousarray(tensor.data)
        file.write(data.data)
        file.write(b"\0" * (-data.size % _ALIGNMENT))
        drop_pages(data)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _tagged(value: Any) -> bytes:
    kind, body = _typed(value)
    return struct.pack("<I", kind) + body


def _typed(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, _text(value)
    if isinstance(value, list):
        return 9, _array(value)
    raise TypeError(f"no GGUF type for {type(value).__name__}")


def _array(values: list[Any]) -> bytes:
    kinds = {type(v) for v in values}
    if kinds == {int}:  # token types are signed in the format
        return struct.pack(f"<IQ{len(values)}i", 5, len(values), *values)
    if kinds == {float}:
        return struct.pack(f"<IQ{len(values)}f", 6, len(values), *values)
    return struct.pack("<IQ", 8, len(values)) + b"".join(map(_text, values))
