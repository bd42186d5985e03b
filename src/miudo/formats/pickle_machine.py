"""The part of the pickle format that names tensors, read without executing anything.

For: `miudo.formats.tensor_pickle`. The machine knows what `torch.save` writes for a dict of
tensors (Python's protocol 2): text, whole numbers, tuples, lists and dicts, and 13 names, none
of which is ever looked up: each stands for plain data here. Any other opcode or name is refused.
Not for: unpickling. No module is imported, nothing is called, no object has a class of a file's
choosing; opcodes, stack and text are bounded.
Read next: `miudo.formats.tensor_pickle`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from miudo.errors import ModelFileError
from miudo.limits import LIMITS, Limits

__all__ = ["STORAGES", "PickleMachine", "Storage", "TensorView"]

STORAGES: Mapping[str, tuple[str, int]] = {
    "torch.FloatStorage": ("F32", 4), "torch.HalfStorage": ("F16", 2),
    "torch.BFloat16Storage": ("BF16", 2), "torch.DoubleStorage": ("F64", 8),
    "torch.LongStorage": ("I64", 8), "torch.IntStorage": ("I32", 4),
    "torch.ShortStorage": ("I16", 2), "torch.CharStorage": ("I8", 1),
    "torch.ByteStorage": ("U8", 1), "torch.BoolStorage": ("BOOL", 1),
}  # fmt: skip
"""Storage classes that a file may name: how numbers are called here, and their bytes."""

_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_STOP = ord(".")
_KNOWN = {_DICT, _TENSOR, _PARAMETER, *STORAGES}

_NAMES = {
    **dict(zip(b"(.012FIJKLMNPQRSTUVX", (
        "MARK", "STOP", "POP", "POP_MARK", "DUP", "FLOAT", "INT", "BININT", "BININT1", "LONG",
        "BININT2", "NONE", "PERSID", "BINPERSID", "REDUCE", "STRING", "BINSTRING",
        "SHORT_BINSTRING", "UNICODE", "BINUNICODE",
    ), strict=True)),
    **dict(zip(b"abcd}eghijl]opqrst)uGBC", (
        "APPEND", "BUILD", "GLOBAL", "DICT", "EMPTY_DICT", "APPENDS", "GET", "BINGET", "INST",
        "LONG_BINGET", "LIST", "EMPTY_LIST", "OBJ", "PUT", "BINPUT", "LONG_BINPUT", "SETITEM",
        "TUPLE", "EMPTY_TUPLE", "SETITEMS", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES",
    ), strict=True)),
    **dict(enumerate((
        "PROTO", "NEWOBJ", "EXT1", "EXT2", "EXT4", "TUPLE1", "TUPLE2", "TUPLE3", "NEWTRUE",
        "NEWFALSE", "LONG1", "LONG4", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES8", "EMPTY_SET",
        "ADDITEMS", "FROZENSET", "NEWOBJ_EX", "STACK_GLOBAL", "MEMOIZE", "FRAME", "BYTEARRAY8",
        "NEXT_BUFFER", "READONLY_BUFFER",
    ), start=0x80)),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers in the file: `kind` is one of STORAGES, `key` names them, `count` counts them."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor over a storage: first element, shape and strides in elements, unchecked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Ordered(dict[str, Any]):
    """Stands for an OrderedDict, the one thing that may be given attributes."""


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


class PickleMachine:
    """Reads pickles that follow one another in `data`; `position` is where it stands.

    Raises ModelFileError naming the opcode or global that is not known, and its byte. Values
    from a file are never compared, hashed or printed whole: a few bytes can make one that
    refers to itself a billion times.
    """

    def __init__(self, data: memoryview, where: object, limits: Limits = LIMITS) -> None:
        self.position = 0
        self.storages: dict[str, Storage] = {}
        self._data, self._where, self._limits = data, where, limits
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._steps: dict[int, Callable[[], None]] = {
            ord("("): lambda: self._marks.append(len(self._stack)),
            ord("}"): lambda: self._push({}),
            ord("]"): lambda: self._push([]),
            ord(")"): lambda: self._push(()),
            ord("N"): lambda: self._push(None),
            0x88: lambda: self._push(True),
            0x89: lambda: self._push(False),
            ord("K"): lambda: self._push(self._number(1)),
            ord("M"): lambda: self._push(self._number(2)),
            ord("J"): lambda: self._push(self._number(4, signed=True)),
            0x8A: lambda: self._push(self._number(self._number(1), signed=True)),
            ord("X"): lambda: self._push(self._text(self._number(4))),
            ord("h"): lambda: self._push(self._recall(self._number(1))),
            ord("j"): lambda: self._push(self._recall(self._number(4))),
            ord("q"): lambda: self._remember(self._number(1)),
            ord("r"): lambda: self._remember(self._number(4)),
            0x85: lambda: self._push(tuple(self._pop_many(1))),
            0x86: lambda: self._push(tuple(self._pop_many(2))),
            0x87: lambda: self._push(tuple(self._pop_many(3))),
            ord("t"): lambda: self._push(tuple(self._pop_to_mark())),
            ord("a"): lambda: self._extend(self._pop_many(1)),
            ord("e"): lambda: self._extend(self._pop_to_mark()),
            ord("s"): lambda: self._set(self._pop_many(2)),
            ord("u"): lambda: self._set(self._pop_to_mark()),
            0x80: self._protocol,
            ord("c"): self._global,
            ord("Q"): self._persistent,
            ord("R"): self._reduce,
            ord("b"): self._build,
        }

    def load(self) -> Any:
        """Returns the next pickle's value: None, bool, int, str, tuple, list, dict, TensorView."""
        self._stack, self._marks, self._memo = [], [], {}
        for _ in range(self._limits.pickle_opcodes):
            code = self._number(1)
            if code == _STOP:
                break
            step = self._steps.get(code)
            if step is None:
                self._refuse(f"has the opcode {_NAMES.get(code, hex(code))}")
            step()
        else:
            self._refuse(f"has more than {self._limits.pickle_opcodes} opcodes")
        (value,) = self._pop_many(1)
        if self._stack or self._marks:
            self._refuse("ends with more than one value")
        return value

    def _refuse(self, what: str) -> NoReturn:
        raise ModelFileError(
            f"{what} at byte {self.position} of its pickle",
            where=self._where,
            remedy="miudo reads plain dicts of tensors only, and runs nothing that a file holds",
        )

    def _take(self, n: int) -> memoryview:
        if n > len(self._data) - self.position:
            self._refuse(f"wants {n} bytes past its end")
        start, self.position = self.position, self.position + n
        return self._data[start : self.position]

    def _number(self, n_bytes: int, *, signed: bool = False) -> int:
        if n_bytes > 16:
            self._refuse(f"has a number of {n_bytes} bytes")
        return int.from_bytes(self._take(n_bytes), "little", signed=signed)

    def _text(self, n_bytes: int) -> str:
        if n_bytes > self._limits.name_bytes:
            self._refuse(f"has a text of {n_bytes} bytes")
        try:
            return str(self._take(n_bytes), "utf-8")
        except UnicodeDecodeError:
            self._refuse("has a text that is not UTF-8")

    def _line(self) -> str:
        ahead = bytes(self._data[self.position : self.position + 128])
        n = ahead.find(b"\n")
        if n < 0:
            self._refuse("has a name without an end")
        return str(self._take(n + 1)[:n], "ascii", "backslashreplace")

    def _push(self, value: Any) -> None:
        if len(self._stack) >= self._limits.pickle_stack:
            self._refuse(f"stacks more than {self._limits.pickle_stack} values")
        self._stack.append(value)

    def _pop_many(self, n: int) -> list[Any]:
        if len(self._stack) - n < (self._marks[-1] if self._marks else 0):
            self._refuse("takes a value that is not there")
        found = self._stack[-n:]
        del self._stack[-n:]
        return found

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            self._refuse("takes a mark that is not there")
        start = self._marks.pop()
        found = self._stack[start:]
        del self._stack[start:]
        return found

    def _top(self) -> Any:
        (value,) = self._pop_many(1)
        self._stack.append(value)
        return value

    def _remember(self, index: int) -> None:
        self._memo[index] = self._top()

    def _recall(self, index: int) -> Any:
        if index not in self._memo:
            self._refuse(f"recalls the value {index}, which is not there")
        return self._memo[index]

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            self._refuse(f"appends to a {_kind(target)}")
        target.extend(values)

    def _set(self, pairs: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(pairs) % 2:
            self._refuse(f"sets an item of a {_kind(target)}")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) is not str:
                self._refuse(f"has a {_kind(key)} as a key")
            if key in target:
                self._refuse(f"has the key {key!r:.100} twice")
            target[key] = value

    def _protocol(self) -> None:
        version = self._number(1)
        if version != 2:
            self._refuse(f"has the protocol {version}, torch.save writes 2,")

    def _global(self) -> None:
        name = f"{self._line()}.{self._line()}"
        if name not in _KNOWN:
            self._refuse(f"names {name}")
        self._push(_Global(name))

    def _persistent(self) -> None:
        """('storage', class, key, device, count), and None at the end in the old form."""
        (given,) = self._pop_many(1)
        if type(given) is tuple and len(given) == 6 and given[5] is None:
            given = given[:5]
        if type(given) is not tuple or len(given) != 5:
            self._refuse("refers to something that is no storage")
        word, kind, key, device, count = given
        if word != "storage" or type(key) is not str or type(device) is not str:
            self._refuse("refers to something that is no storage")
        if not isinstance(kind, _Global) or kind.name not in STORAGES or not _is_size(count):
            self._refuse("refers to a storage of no known class or size")
        storage = Storage(kind.name, key, count)
        if self.storages.setdefault(key, storage) != storage:
            self._refuse(f"describes the storage {key!r:.100} in two ways")
        self._push(storage)

    def _reduce(self) -> None:
        called, given = self._pop_many(2)
        name = called.name if isinstance(called, _Global) else f"a {_kind(called)}"
        if type(given) is not tuple:
            self._refuse(f"calls {name} without a tuple")
        if name == _DICT and not given:
            self._push(_Ordered())
        elif name == _TENSOR and _is_tensor(given):
            self._push(TensorView(*given[:4]))
        elif name == _PARAMETER and len(given) == 3 and isinstance(given[0], TensorView):
            self._push(given[0])
        else:
            self._refuse(f"calls {name} with values that make no tensor")

    def _build(self) -> None:
        target, state = self._pop_many(2)
        # What modules note beside their tensors (`_metadata`) is no weight: it is dropped.
        if not isinstance(target, _Ordered) or not isinstance(state, dict):
            self._refuse(f"sets attributes of a {_kind(target)}")
        self._push(target)


def _kind(value: Any) -> str:
    names = {_Global: "name", _Ordered: "dict", TensorView: "tensor", Storage: "storage"}
    return names.get(type(value), type(value).__name__)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_tensor(given: tuple[Any, ...]) -> bool:
    """(storage, offset, shape, strides, requires_grad, hooks); a seventh would change numbers."""
    if len(given) != 6 or not isinstance(given[0], Storage) or not _is_size(given[1]):
        return False
    shape, strides, _, hooks = given[2:]
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        return False
    return isinstance(hooks, dict) and not hooks and all(map(_is_size, shape + strides))
