"""The safetensors container: read with every bound checked, memory-mapped, and written.

For: the weights of Hugging Face folders; the reader needs no library and refuses what the
reference accepts (a name that stands twice).
Not for: which names a model has (`miudo.formats.hf`).
Read next: `miudo.formats.hf`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from miudo.errors import ModelFileError
from miudo.files import open_regular
from miudo.formats.derived import drop_pages
from miudo.formats.mapping import map_file
from miudo.limits import LIMITS, Limits
from miudo.strict_json import parse_object
from miudo.tensors import DType, StoredTensor

__all__ = ["read_safetensors", "write_safetensors"]

_NAMES = {"F32": DType.F32, "F16": DType.F16, "BF16": DType.BF16}
# All whole-byte types of the format: buffers that mean nothing may have any of them.
_WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip


def read_safetensors(
    path: Path, limits: Limits = LIMITS, *, skip: tuple[str, ...] = ()
) -> dict[str, StoredTensor]:
    """Returns the tensors of the file at `path`, memory-mapped, but for names ending in `skip`.

    Raises ModelFileError naming tensor and field for anything that is not exactly a
    safetensors file: sizes are checked against the file before anything is allocated.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        if size < 8:
            raise ModelFileError(f"{size} bytes are too short for safetensors", where=path)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if length > limits.header_bytes or length > size - 8:
            raise ModelFileError(
                f"header of {length} bytes in a file of {size}",
                where=path,
                remedy="The file is damaged or not safetensors; fetch it again",
            )
        header = parse_object(file.read(length), path, max_values=limits.json_values)
        start = 8 + length
        entries = _check_header(header, size - start, path, limits)
        data = map_file(file)[start:]
    kept = {name: e for name, e in entries.items() if not (skip and name.endswith(skip))}
    return {
        name: StoredTensor(_known_type(name, dtype, path), shape, data[a:b])
        for name, (dtype, shape, a, b) in kept.items()
    }


def _known_type(name: str, dtype: str, path: Path) -> DType:
    if dtype not in _NAMES:
        raise ModelFileError(
            f"is {dtype}", where=f"{path}: tensor {name}", remedy="miudo reads F32, F16 and BF16"
        )
    return _NAMES[dtype]


_Entry = tuple[str, tuple[int, ...], int, int]


def _check_header(
    header: Mapping[str, Any], size: int, path: Path, limits: Limits
) -> dict[str, _Entry]:
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelFileError("is not a map of strings", where=f"{path}: __metadata__")
    if sum(map(len, metadata.values())) > limits.template_bytes:
        raise ModelFileError(
            f"is longer than {limits.template_bytes}", where=f"{path}: __metadata__"
        )
    entries = {n: _entry(n, v, path, limits) for n, v in header.items() if n != "__metadata__"}
    if len(entries) > limits.tensors:
        raise ModelFileError(f"{len(entries)} tensors, allowed {limits.tensors}", where=path)
    end = 0
    for name, (_, _, start, stop) in sorted(entries.items(), key=lambda e: (e[1][2], e[1][3])):
        if start != end:
            kind = "overlaps another" if start < end else "leaves a hole before it"
            raise ModelFileError(f"tensor {name} at byte {start} {kind}", where=path)
        end = stop
    if end != size:
        raise ModelFileError(
            f"tensors take {end} bytes, the file holds {size}",
            where=path,
            remedy="The file is truncated or has foreign bytes; fetch it again",
        )
    return entries


def _entry(name: str, value: Any, path: Path, limits: Limits) -> _Entry:
    where = f"{path}: tensor {name}"
    if len(name.encode(errors="replace")) > limits.name_bytes or not name:
        raise ModelFileError(f"a name of {len(name)} characters", where=path)
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError("needs dtype, shape and data_offsets", where=where)
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in _WIDTHS:
        raise ModelFileError(f"dtype {dtype!r:.60} is unknown", where=where)
    shape = _whole_numbers(value["shape"], where, "shape", limits.tensor_elements)
    offsets = _whole_numbers(value["data_offsets"], where, "data_offsets", 1 << 62)
    if len(shape) > limits.tensor_dims or prod(shape) > limits.tensor_elements:
        raise ModelFileError(f"shape {list(shape)} is too large", where=where)
    if len(offsets) != 2 or offsets[1] - offsets[0] != prod(shape) * _WIDTHS[dtype]:
        raise ModelFileError(
            f"data_offsets {list(offsets)} do not fit {dtype} {list(shape)}", where=where
        )
    return dtype, shape, offsets[0], offsets[1]


def _whole_numbers(value: Any, where: str, field: str, limit: int) -> tuple[int, ...]:
    # bool is an int in Python: `true` is no size.
    if not isinstance(value, list) or not all(type(v) is int and 0 <= v <= limit for v in value):
        raise ModelFileError(f"{field} {str(value)[:80]} is no list of sizes", where=where)
    return tuple(value)


def write_safetensors(file: IO[bytes], tensors: Iterable[tuple[str, StoredTensor]]) -> None:
    """Writes tensors in the given order. F32, F16 and BF16 only: the format has no blocks.

    The data of one tensor after the other is asked for, once, and let go.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end, held = 0, []
    for name, tensor in tensors:
        start, end = end, end + tensor.dtype.size_bytes(tensor.shape)
        shape = list(tensor.shape)
        header[name] = {"dtype": tensor.dtype.value, "shape": shape, "data_offsets": [start, end]}
        held.append(tensor)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensor data starts aligned
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in held:
        data = np.ascontiguousarray(tensor.data)
        file.write(data.data)
        drop_pages(data)
