"""The GGUF container (version 2 and 3, little endian), read with every bound checked.

For: keys and tensors of untrusted files, memory-mapped; arrays are skipped over until asked
for, so that a vocabulary of 150,000 words costs nothing to those who do not want it.
Not for: what keys mean (`miudo.formats.gguf`).
Read next: `miudo.formats.gguf`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miudo.errors import ModelFileError
from miudo.files import open_regular
from miudo.formats.gguf_strings import decode_strings, find_strings
from miudo.formats.mapping import map_file
from miudo.limits import LIMITS, Limits
from miudo.tensors import DType, StoredTensor

__all__ = [
    "BYTES",
    "FLOAT32",
    "GGUF_TYPES",
    "INT32",
    "NUMBERS",
    "ArrayAt",
    "Container",
    "read_container",
]

GGUF_TYPES: Mapping[int, DType] = {
    0: DType.F32, 1: DType.F16, 2: DType.Q4_0, 3: DType.Q4_1, 6: DType.Q5_0, 7: DType.Q5_1,
    8: DType.Q8_0, 10: DType.Q2_K, 11: DType.Q3_K, 12: DType.Q4_K, 13: DType.Q5_K,
    14: DType.Q6_K, 20: DType.IQ4_NL, 23: DType.IQ4_XS, 30: DType.BF16, 39: DType.MXFP4,
}  # fmt: skip
"""Tensor type numbers of the format."""

_OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
    22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
BYTES = 24
"""The number of I8: in miudo's own files what sparse tensors are written as."""
_OWN = "miudo"

_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
INT32, FLOAT32 = 5, 6
"""Numbers of element types that arrays must have."""
NUMBERS = frozenset(_SCALARS)
"""Those of element types that are numbers or truth values."""


@dataclass(frozen=True, slots=True)
class ArrayAt:
    """Where an array lies: its element type, its length, and the offset of its first element.

    `starts` are the offsets of strings, and of the end of the last one.
    """

    kind: int
    count: int
    offset: int
    starts: npt.NDArray[np.int64] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Container:
    """Keys and tensors of one file; arrays are read with `strings` and `numbers`.

    `plain` are tensors of I8, in miudo's own files alone: bytes whose meaning keys tell.
    """

    path: Path
    keys: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    data: npt.NDArray[np.uint8]
    plain: Mapping[str, npt.NDArray[np.uint8]]

    def text(self, key: str) -> str | None:
        """Returns a string, None where there is no `key`; raises ModelFileError for others."""
        value = self.keys.get(key)
        if value is not None and not isinstance(value, str):
            raise ModelFileError("is no text", where=f"{self.path}: {key}")
        return value

    def strings(self, key: str) -> list[str]:
        """Returns a string array; raises ModelFileError if `key` is none."""
        at = self._array(key, {_STRING})
        assert at.starts is not None  # noqa: S101 - string arrays have them
        try:
            return decode_strings(self.data, at.starts)
        except UnicodeDecodeError as error:
            raise ModelFileError(
                f"{error.object[:60]!r} is not UTF-8 ({error.reason})",
                where=f"{self.path}: {key}",
            ) from error

    def numbers(self, key: str, kinds: set[int]) -> npt.NDArray[np.generic]:
        """Returns a number array; raises ModelFileError if its type is none of `kinds`."""
        at = self._array(key, kinds)
        dtype = np.dtype("<" + _SCALARS[at.kind])
        return np.frombuffer(self.data, dtype=dtype, count=at.count, offset=at.offset)

    def _array(self, key: str, kinds: set[int]) -> ArrayAt:
        at = self.keys.get(key)
        if not isinstance(at, ArrayAt) or at.kind not in kinds:
            raise ModelFileError("is no array of the kind it must be", where=f"{self.path}: {key}")
        return at


class _Cursor:
    """Reads values one after the other; every read is checked against the file's end."""

    def __init__(
        self, data: npt.NDArray[np.uint8], path: Path, limits: Limits, offset: int = 0
    ) -> None:
        self.data, self.memory, self.path, self.limits = data, data.data, path, limits
        self.offset = offset

    def scalar(self, code: str, what: str) -> Any:
        form = "<" + code
        start, self.offset = self.offset, self.skip(struct.calcsize(form), what)
        return struct.unpack_from(form, self.memory, start)[0]

    def skip(self, n: int, what: str) -> int:
        if n > len(self.memory) - self.offset:
            raise ModelFileError(
                f"{what} at byte {self.offset} runs past the end of the file",
                where=self.path,
                remedy="The file is truncated or damaged; fetch it again",
            )
        return self.offset + n

    def text_bytes(self, what: str, limit: int) -> bytes:
        length = self.scalar("Q", what)
        if length > limit:
            raise ModelFileError(f"{what} of {length} bytes, allowed {limit}", where=self.path)
        start, self.offset = self.offset, self.skip(length, what)
        return bytes(self.memory[start : self.offset])

    def text(self, what: str, limit: int | None = None) -> str:
        raw = self.text_bytes(what, self.limits.gguf_string_bytes if limit is None else limit)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ModelFileError(
                f"{what} before byte {self.offset} is not UTF-8 ({error.reason})", where=self.path
            ) from error

    def value(self, kind: int, what: str) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], what)
        if kind == _STRING:
            return self.text(what)
        if kind == _ARRAY:
            return self._array(what)
        raise ModelFileError(f"{what} has the unknown value type {kind}", where=self.path)

    def _array(self, what: str) -> ArrayAt:
        kind, count = self.scalar("I", what), self.scalar("Q", what)
        if count > self.limits.gguf_array_items:
            limit = self.limits.gguf_array_items
            raise ModelFileError(f"{what} has {count} items, allowed {limit}", where=self.path)
        at = ArrayAt(kind, count, self.offset)
        if kind in _SCALARS:
            self.offset = self.skip(count * struct.calcsize("<" + _SCALARS[kind]), what)
        elif kind == _STRING:
            starts = find_strings(self.data, self.offset, count)
            end = len(self.memory) + 1 if starts is None else int(starts[-1])
            at = ArrayAt(kind, count, self.offset, starts)
            self.offset = self.skip(end - self.offset, what)
        else:
            raise ModelFileError(f"{what} is an array of type {kind}", where=self.path)
        return at


def read_container(path: Path, limits: Limits = LIMITS) -> Container:
    """Returns the keys and tensors of the GGUF file at `path`.

    Raises ModelFileError naming key, tensor or byte for whatever is not exactly in bounds.
    """
    with open_regular(path) as file:
        data = map_file(file)
    size = data.size
    if size < 24:
        raise ModelFileError(f"{size} bytes are too short for GGUF", where=path)
    cursor = _Cursor(data, path, limits)
    n_tensors, n_keys = _read_head(cursor, limits)
    keys = dict(_read_keys(cursor, n_keys))
    infos = list(_read_infos(cursor, n_tensors, own=keys.get("general.architecture") == _OWN))
    alignment = keys.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise ModelFileError(f"alignment {alignment!r}", where=f"{path}: general.alignment")
    start = -(-cursor.offset // alignment) * alignment
    if infos and start > size:
        raise ModelFileError("ends before its tensors", where=path)
    tensors, plain = _place(infos, data, start, alignment, path)
    return Container(path, keys, tensors, data, plain)


def _read_head(cursor: _Cursor, limits: Limits) -> tuple[int, int]:
    magic, version = cursor.scalar("4s", "magic"), cursor.scalar("I", "version")
    if magic != b"GGUF" or version not in (2, 3):
        raise ModelFileError(
            f"magic {magic!r} version {version}, not little-endian GGUF 2 or 3", where=cursor.path
        )
    n_tensors, n_keys = cursor.scalar("Q", "tensor count"), cursor.scalar("Q", "key count")
    if n_tensors > limits.tensors or n_keys > limits.gguf_keys:
        raise ModelFileError(
            f"{n_tensors} tensors and {n_keys} keys, allowed {limits.tensors} and "
            f"{limits.gguf_keys}",
            where=cursor.path,
            remedy="The file is damaged; fetch it again",
        )
    return n_tensors, n_keys


def _read_keys(cursor: _Cursor, count: int) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    for _ in range(count):
        key = cursor.text("a key", cursor.limits.name_bytes)
        if not key or key in seen:
            raise ModelFileError(f"key {key!r} is empty or stands twice", where=cursor.path)
        seen.add(key)
        yield key, cursor.value(cursor.scalar("I", key), f"key {key}")


_Info = tuple[str, tuple[int, ...], DType | None, int]


def _read_infos(cursor: _Cursor, count: int, *, own: bool) -> Iterator[_Info]:
    seen: set[str] = set()
    for _ in range(count):
        name = cursor.text("a tensor name", cursor.limits.name_bytes)
        where = f"{cursor.path}: tensor {name}"
        if not name or name in seen:
            raise ModelFileError("its name is empty or stands twice", where=where)
        seen.add(name)
        n_dims = cursor.scalar("I", name)
        if not 1 <= n_dims <= cursor.limits.tensor_dims:
            raise ModelFileError(f"has {n_dims} dimensions", where=where)
        shape = tuple(reversed([cursor.scalar("Q", name) for _ in range(n_dims)]))
        number, offset = cursor.scalar("I", name), cursor.scalar("Q", name)
        if min(shape) < 1 or prod(shape) > cursor.limits.tensor_elements:
            raise ModelFileError(f"has shape {list(shape)}", where=where)
        if own and number == BYTES and n_dims == 1:
            yield name, shape, None, offset
            continue
        if number not in GGUF_TYPES:
            raise ModelFileError(
                f"has type {_OTHER_TYPES.get(number, number)}",
                where=where,
                remedy=f"Take a file whose tensors are all of {', '.join(GGUF_TYPES.values())}",
            )
        if not GGUF_TYPES[number].fits(shape):
            raise ModelFileError(f"rows of {shape[-1]} are no whole blocks", where=where)
        yield name, shape, GGUF_TYPES[number], offset


def _place(
    infos: list[_Info], data: npt.NDArray[np.uint8], start: int, alignment: int, path: Path
) -> tuple[dict[str, StoredTensor], dict[str, npt.NDArray[np.uint8]]]:
    end, found, plain = 0, {}, {}
    for name, shape, dtype, offset in infos:
        size = prod(shape) if dtype is None else dtype.size_bytes(shape)
        expected = -(-end // alignment) * alignment
        if offset != expected or start + offset + size > len(data):
            raise ModelFileError(
                f"its {size} bytes lie at offset {offset} of {len(data) - start}, expected at "
                f"{expected}",
                where=f"{path}: tensor {name}",
                remedy="The file is truncated or damaged; fetch it again",
            )
        end = offset + size
        here = data[start + offset : start + end]
        if dtype is None:
            plain[name] = here
        else:
            found[name] = StoredTensor(dtype, shape, here)
    # Some writers pad the last tensor too, some do not; nothing else may follow.
    if len(data) - start - end >= alignment:
        raise ModelFileError(
            f"{len(data) - start - end} bytes follow the last tensor",
            where=path,
            remedy="The file is damaged; fetch it again",
        )
    return found, plain
