"""`pytorch_model.bin`: tensors out of what `torch.save` wrote, without unpickling it.

For: checkpoints that exist in no other form. Both containers are read: the zip archive, whose
numbers are mapped where they lie, and the stream of pickles that came before it (2020).
Not for: anything but one flat dict of float tensors; the machine refuses all else by name.
Read next: `miudo.formats.pickle_machine`, `miudo.formats.stored_zip`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miudo.errors import ModelFileError
from miudo.files import open_regular
from miudo.formats.mapping import map_file
from miudo.formats.pickle_machine import STORAGES, PickleMachine, TensorView
from miudo.formats.stored_zip import stored_members
from miudo.limits import LIMITS, Limits
from miudo.tensors import DType, StoredTensor

__all__ = ["read_tensor_pickle"]

_STREAM = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that begins the old form
_STREAM_VERSION = 1001
_DTYPES = {"F32": DType.F32, "F16": DType.F16, "BF16": DType.BF16}

_Spans = Mapping[str, tuple[int, int]]  # where the numbers of a storage start and end in the file


def read_tensor_pickle(
    path: Path, limits: Limits = LIMITS, *, skip: tuple[str, ...] = ()
) -> dict[str, StoredTensor]:
    """Returns the tensors of the file at `path`, but for names ending in `skip`.

    They are memory-mapped, or copied where their elements do not lie in order. Raises
    ModelFileError naming opcode, global, member or tensor for anything that is not exactly what
    `torch.save` writes for a dict of F32, F16 and BF16 tensors.
    """
    with open_regular(path) as file:
        data = map_file(file)
    start = data[: len(_STREAM)].tobytes()
    if start[:4] == b"PK\x03\x04":
        held, spans = _from_zip(data.data, path, limits)
    elif start == _STREAM:
        held, spans = _from_stream(data.data, path, limits)
    else:
        raise ModelFileError(
            "is nothing that torch.save writes", where=path, remedy="Fetch it again"
        )
    views = {
        name: v for name, v in _views(held, path, limits) if not (skip and name.endswith(skip))
    }
    copied = 0
    for name, view in views.items():
        _check_view(view, f"{path}: tensor {name}", limits)
        copied += 0 if _in_order(view) else prod(view.shape) * _width(view)
    if copied > data.size:  # one storage, turned a thousand times
        raise ModelFileError(f"{copied} bytes of tensors lie out of order", where=path)
    return {name: _tensor(view, data, spans[view.storage.key]) for name, view in views.items()}


def _from_zip(data: memoryview, path: Path, limits: Limits) -> tuple[Any, _Spans]:
    members = stored_members(data, path, limits)
    roots = {name.partition("/")[0] for name in members}
    root = f"{next(iter(roots), '')}/"
    if len(roots) != 1 or root + "data.pkl" not in members:
        raise ModelFileError("is a zip archive without data.pkl", where=path)
    order = members.get(root + "byteorder")
    if order is not None and bytes(data[slice(*order)]) != b"little":
        raise ModelFileError("holds big-endian numbers", where=path)
    start, end = members[root + "data.pkl"]
    if end - start > limits.pickle_bytes:
        raise ModelFileError(f"data.pkl has {end - start} bytes", where=path)
    machine = PickleMachine(data[start:end], path, limits)
    held = machine.load()
    if machine.position != end - start:
        raise ModelFileError("data.pkl goes on after its end", where=path)
    spans: dict[str, tuple[int, int]] = {}
    for key, storage in machine.storages.items():
        span = members.get(f"{root}data/{key}")
        size = storage.count * STORAGES[storage.kind][1]
        if span is None or span[1] - span[0] != size:
            found = "is not there" if span is None else f"has {span[1] - span[0]} bytes"
            raise ModelFileError(f"storage {key} of {size} bytes {found}", where=path)
        spans[key] = span
    return held, spans


def _from_stream(data: memoryview, path: Path, limits: Limits) -> tuple[Any, _Spans]:
    """Number, version, machine, the dict, keys of storages; then each one's count and numbers."""
    machine = PickleMachine(data[: limits.pickle_bytes], path, limits)
    machine.load()
    version, made_on, held, keys = (machine.load() for _ in range(4))
    if type(version) is not int or version != _STREAM_VERSION:
        raise ModelFileError(f"is no stream of version {_STREAM_VERSION}", where=path)
    if not isinstance(made_on, dict) or made_on.get("little_endian") is not True:
        raise ModelFileError("holds big-endian numbers", where=path)
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise ModelFileError("ends without a list of storages", where=path)
    if len(keys) != len(machine.storages) or set(keys) != machine.storages.keys():
        raise ModelFileError("holds other storages than its tensors name", where=path)
    spans: dict[str, tuple[int, int]] = {}
    at = machine.position
    for key in keys:
        storage = machine.storages[key]
        start, at = at + 8, at + 8 + storage.count * STORAGES[storage.kind][1]
        count = int.from_bytes(data[start - 8 : start], "little")
        if at > len(data) or count != storage.count:
            raise ModelFileError(f"storage {key} has {count} numbers or is cut off", where=path)
        spans[key] = start, at
    if at != len(data):
        raise ModelFileError(f"{len(data) - at} bytes follow the last storage", where=path)
    return held, spans


def _views(held: Any, path: Path, limits: Limits) -> Iterator[tuple[str, TensorView]]:
    if not isinstance(held, dict) or len(held) > limits.tensors:
        raise ModelFileError("holds no dict of tensors", where=path)
    for name, view in held.items():
        if not name or not isinstance(view, TensorView):
            raise ModelFileError(
                "is no tensor",
                where=f"{path}: {name or 'an empty name'}",
                remedy="Save the model's state_dict alone",
            )
        yield name, view


def _check_view(view: TensorView, where: str, limits: Limits) -> None:
    kind = STORAGES[view.storage.kind][0]
    if kind not in _DTYPES:
        raise ModelFileError(f"is {kind}", where=where, remedy="miudo reads F32, F16 and BF16")
    # Before any product: a shape may have thousands of axes, or hide an absurd one beside a 0.
    most, axes = limits.tensor_elements, view.shape
    if len(axes) > limits.tensor_dims or max(axes, default=0) > most or prod(axes) > most:
        raise ModelFileError(f"shape {list(axes[:8])} is too large", where=where)
    n = prod(axes)
    steps = ((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    last = view.offset + (sum(steps) if n else -1)
    if last >= view.storage.count:
        raise ModelFileError(
            f"ends at element {last} of a storage of {view.storage.count}", where=where
        )
    if n > view.storage.count:  # an expanded tensor: a few numbers could fill the memory
        raise ModelFileError(
            f"has {n} elements over {view.storage.count} numbers",
            where=where,
            remedy="Save it with .contiguous()",
        )


def _width(view: TensorView) -> int:
    return STORAGES[view.storage.kind][1]


def _in_order(view: TensorView) -> bool:
    """Whether elements lie one after the other; the stride of an axis of 1 means nothing."""
    step = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size > 1 and stride != step:
            return prod(view.shape) == 0
        step *= size
    return True


def _tensor(view: TensorView, data: npt.NDArray[np.uint8], span: tuple[int, int]) -> StoredTensor:
    width = _width(view)
    start = span[0] + view.offset * width
    dtype = _DTYPES[STORAGES[view.storage.kind][0]]
    if _in_order(view):
        return StoredTensor(dtype, view.shape, data[start : start + prod(view.shape) * width])
    # Through bytes, since the numbers of a file need not be aligned.
    shape = (*view.shape, width)
    strides = (*(stride * width for stride in view.strides), 1)
    turned = np.lib.stride_tricks.as_strided(data[start:], shape, strides, writeable=False)
    return StoredTensor(dtype, view.shape, np.ascontiguousarray(turned).reshape(-1))
