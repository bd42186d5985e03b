"""Small models of every family, with a tokenizer, template and record; weights as torch saves."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from miudo.config import Activation, Mlp, ModelConfig, Norm, Position, QkNorm
from miudo.formats.model_file import ModelFile
from miudo.records import Artefact, Record
from miudo.tensors import StoredTensor, tensor_table
from miudo.text.tokenizer_json import parse_tokenizer_json

SHAPE: dict[str, Any] = {
    "n_layers": 2, "d_model": 32, "n_heads": 4, "d_ff": 64, "vocab_size": 40, "max_positions": 24,
    "bos_id": 0, "eos_ids": (0, 2), "pad_id": 1,
}  # fmt: skip
PLAIN = {
    "norm": Norm.LAYER, "norm_bias": True, "position": Position.LEARNED, "mlp": Mlp.PLAIN,
    "activation": Activation.GELU_TANH, "qkv_bias": True, "o_bias": True, "mlp_bias": True,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SHAPE | {"n_kv_heads": 2},
    "llama-untied": SHAPE | {"tie_embeddings": False, "rope_theta": 5e5, "norm_eps": 1e-6},
    "llama-biases": SHAPE | {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "head_dim": 16},
    "qwen2": SHAPE | {"n_kv_heads": 2, "qkv_bias": True},
    "qwen3": SHAPE | {"n_kv_heads": 1, "qk_norm": QkNorm.HEAD, "head_dim": 16},
    "gpt2": SHAPE | PLAIN,
}
WORDS = ("<|end|>", "<|pad|>", "</s>", *"abcdefgh", "Ġ", "ab", "Ġa", "Ġab")
MERGES = (("a", "b"), ("Ġ", "a"), ("Ġ", "ab"))


def tokenizer_json(**changes: Any) -> bytes:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    values: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": WORDS[i], **plain, "special": True} for i in range(3)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "vocab": {word: i for i, word in enumerate(WORDS)},
            "merges": [list(m) for m in MERGES],
        },
    }
    return json.dumps(values | changes).encode()


def made(name: str = "llama", **changes: Any) -> ModelFile:
    """A model whose every number is noise; `changes` are fields of the config."""
    config = ModelConfig.uniform(**(CONFIGS[name] | changes))
    rng = np.random.default_rng(7)
    return ModelFile(
        config=config,
        weights={
            spec.name: StoredTensor.from_f32(rng.standard_normal(spec.shape).astype("<f4"))
            for spec in tensor_table(config)
        },
        tokenizer=parse_tokenizer_json(tokenizer_json()),
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %} é",
        record=Record(
            verb="train", name="tiny", licence="CC0-1.0", inputs=(Artefact("data", "x", "0" * 64),)
        ),
        architecture=name,
        path=None,
    )


def same_weights(a: ModelFile, b: ModelFile) -> None:
    assert list(a.weights) == list(b.weights)
    for name, tensor in a.weights.items():
        assert (tensor.dtype, tensor.shape) == (b.weights[name].dtype, b.weights[name].shape), name
        np.testing.assert_array_equal(tensor.data, b.weights[name].data, err_msg=name)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., ModelFile]:
    return made


@pytest.fixture
def make_tokenizer() -> Callable[..., bytes]:
    return tokenizer_json


@pytest.fixture
def assert_same_weights() -> Callable[[ModelFile, ModelFile], None]:
    return same_weights


@pytest.fixture(params=CONFIGS)
def any_model(request: pytest.FixtureRequest) -> ModelFile:
    return made(request.param)


@pytest.fixture
def unequal_model() -> ModelFile:
    """Layers of 64 and 33 hidden units."""
    whole = made()
    narrow = dataclasses.replace(whole.config.layers[1], d_ff=33)
    config = dataclasses.replace(whole.config, layers=(whole.config.layers[0], narrow))
    rng = np.random.default_rng(8)
    weights = {
        spec.name: StoredTensor.from_f32(rng.standard_normal(spec.shape).astype("<f4"))
        for spec in tensor_table(config)
    }
    return dataclasses.replace(whole, config=config, weights=weights)


# What `torch.save` writes, by hand: pieces of a pickle, each pushing one value.


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def row_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def named(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


ORDERED = named("collections", "OrderedDict") + b")R"


def storage(key: str = "0", count: int = 4, kind: str = "FloatStorage") -> bytes:
    place = row_of(text("storage"), named("torch", kind), text(key), text("cpu"), number(count))
    return place + b"Q"


def view(
    shape: Sequence[int] = (4,), strides: Sequence[int] = (1,), offset: int = 0, **over: Any
) -> bytes:
    values = (
        storage(**over),
        number(offset),
        row_of(*map(number, shape)),
        row_of(*map(number, strides)),
        b"\x89",
        ORDERED,
    )
    return named("torch._utils", "_rebuild_tensor_v2") + row_of(*values) + b"R"


def state(*pairs: tuple[str, bytes]) -> bytes:
    items = b"".join(text(name) + value for name, value in pairs)
    return b"\x80\x02" + ORDERED + b"(" + items + b"u."


def torch_zip(
    pickled: bytes, storages: Mapping[str, bytes] | None = None, byteorder: bytes | None = b"little"
) -> bytes:
    """An archive as `torch.save` makes it; before 2022 without `byteorder`."""
    held = {"0": bytes(16)} if storages is None else storages
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        if byteorder is not None:
            archive.writestr("archive/byteorder", byteorder)
        for key, content in held.items():
            archive.writestr(f"archive/data/{key}", content)
    return out.getvalue()


def torch_stream(pickled: bytes, storages: Mapping[str, bytes], width: int = 4) -> bytes:
    """The form before the archive: pickles one after the other, then the numbers."""
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    system = b"\x80\x02}(" + text("little_endian") + b"\x88u."
    keys = b"\x80\x02](" + b"".join(map(text, storages)) + b"e."
    data = b"".join((len(raw) // width).to_bytes(8, "little") + raw for raw in storages.values())
    return magic + b"\x80\x02M\xe9\x03." + system + pickled + keys + data


class Reduces:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *values: Any) -> None:
        self.call = function, values

    def __reduce__(self) -> Any:
        return self.call


def _calls() -> dict[str, tuple[bytes, str]]:
    """What pickles that attack are made of, by Python's own writer."""
    made = {
        "os.system": Reduces(os.system, "true"),
        "eval": Reduces(eval, "1"),
        "exec": Reduces(exec, "1"),
        "open": Reduces(open, "/etc/passwd"),
        "getattr": Reduces(getattr, "", "join"),
        "import": Reduces(__import__, "this"),
        "chain": Reduces(Reduces, Reduces(os.system, "true")),
        "inside": {"w": [Reduces(os.system, "true")]},
    }
    return {
        f"{name} in protocol {protocol}": (pickle.dumps(value, protocol), "")
        for name, value in made.items()
        for protocol in (0, 2, 4)
    }


def _bad_pickles() -> dict[str, tuple[bytes, str]]:
    """Contents of data.pkl that must be refused, and what the refusal says."""
    call = named("torch._utils", "_rebuild_tensor_v2")
    wrap = named("torch._utils", "_rebuild_parameter")
    start, good, one = b"\x80\x02", ("w", view()), row_of(number(1))
    held = (storage(), number(0), row_of(number(4)), one, b"\x89", ORDERED)
    place = (text("storage"), named("torch", "FloatStorage"), text("0"), text("cpu"), number(4))

    def swapped(values: tuple[bytes, ...], at: int, value: bytes) -> bytes:
        return row_of(*values[:at], value, *values[at + 1 :])

    found = {
        "a command": (start + named("os", "system") + row_of(text("true")) + b"R.", "os.system"),
        "a Python 2 command": (start + named("__builtin__", "eval") + b")R.", "__builtin__.eval"),
        "a dotted name": (start + named("torch", "serialization.os.system") + b")R.", "os.system"),
        "a torch name": (start + named("torch._utils", "_rebuild_qtensor") + b".", "qtensor"),
        "a name that hides": (start + named("torch\x1b[2J", "FloatStorage") + b".", "\\x1b"),
        "a name without an end": (start + b"c" + b"x" * 5000, "without an end"),
        "attributes of a dict": (start + b"}}b.", "attributes of a dict"),
        "attributes of a tensor": (start + view() + b"}b.", "attributes of a tensor"),
        "attributes of a name": (start + named("torch", "FloatStorage") + b"}b.", "of a name"),
        "attributes that are none": (start + ORDERED + b"Nb.", "attributes of a dict"),
        "a call of a dict": (start + b"})R.", "calls a dict"),
        "a call of a storage class": (start + named("torch", "FloatStorage") + b")R.", "calls"),
        "a call without a tuple": (start + named("collections", "OrderedDict") + b"]R.", "tuple"),
        "pairs for a dict": (start + ORDERED[:-2] + row_of(b"]") + b"R.", "calls collections"),
        "a tensor of nothing": (start + call + b")R.", "make no tensor"),
        "a tensor of a tensor": (start + call + row_of(view(), *[b"N"] * 5) + b"R.", "no tensor"),
        "a view that conjugates": (
            start + call + row_of(storage(), *[number(0)] + [b")"] * 2, b"\x89", ORDERED, b"}")
            + b"R.", "make no tensor",
        ),
        "a negative size": (state(("w", view(shape=[-4]))), "make no tensor"),
        "a negative stride": (state(("w", view(strides=[-1]))), "make no tensor"),
        "a negative offset": (state(("w", view(offset=-1))), "make no tensor"),
        "a size of 2^62": (state(("w", view(shape=[1 << 62]))), "make no tensor"),
        **{
            f"a tensor with {value!r} as value {at}": (
                start + call + swapped(held, at, value) + b"R.", "make no tensor",
            )
            for at, value in ((0, b"}"), (1, b"N"), (2, row_of(b"\x88")), (2, number(4)),
                              (2, b"](" + number(4) + b"e"), (3, b"](" + number(1) + b"e"),
                              (3, b"}"), (5, b")"), (5, b"}(" + text("a") + b"Nu"), (5, b"N"))
        },
        **{
            f"a storage with {value!r} as value {at}": (
                start + swapped(place, at, value) + b"Q.", says,
            )
            for at, value, says in (
                (0, b"N", "no storage"), (0, text("module"), "no storage"),
                (1, named("collections", "OrderedDict"), "no known class"),
                (1, b"N", "no known class"), (2, number(0), "no storage"),
                (3, b"N", "no storage"), (4, b"N", "or size"), (4, b"\x88", "or size"),
            )
        },
        "a storage of four values": (start + row_of(*place[:4]) + b"Q.", "no storage"),
        "a storage seen in part": (start + row_of(*place, one) + b"Q.", "no storage"),
        "a storage of a list": (start + b"](" + b"".join(place) + b"eQ.", "no storage"),
        "a dict of a tensor": (start + ORDERED[:-2] + row_of(*held) + b"R.", "calls collections"),
        "a storage class of a tensor": (
            start + place[1] + row_of(view(), b"\x89", ORDERED) + b"R.", "calls torch.FloatSt",
        ),
        "a parameter of a storage": (
            start + wrap + row_of(storage(), b"\x89", ORDERED) + b"R.", "make no tensor",
        ),
        "a parameter of two values": (start + wrap + row_of(view(), b"\x89") + b"R.", "no tensor"),
        "sizes without strides": (state(("w", view(strides=[]))), "make no tensor"),
        "two descriptions": (state(good, ("x", view(kind="HalfStorage"))), "two ways"),
        "a count of -1": (state(("w", view(count=-1))), "no known class or size"),
        "a storage of a dict": (start + b"}Q.", "no storage"),
        "a key twice": (state(good, good), "'w' twice"),
        "a number as a key": (start + b"}(" + number(1) + b"Nu.", "int as a key"),
        "a tuple as a key": (start + b"}(" + b")" + b"\x85" * 9 + b"Nu.", "tuple as a key"),
        "no tensor": (state(("w", number(1))), "is no tensor"),
        "tensors inside a dict": (state(("model", state(good)[2:-1])), "is no tensor"),
        "an empty name": (state(("", view())), "an empty name"),
        "a list": (start + b"].", "no dict"),
        "nothing": (b"", "wants 1 bytes"),
        "no end": (state(good)[:-1], "wants 1 bytes"),
        "a second value": (state(good)[:-1] + b"N.", "more than one value"),
        "a mark left over": (state(good)[:-1] + b"(.", "not there"),
        "bytes after the end": (state(good) + b"N.", "goes on"),
        "no value": (start + b".", "not there"),
        "a mark below the value": (start + b"(" + view() + b".", "more than one value"),
        "a value below a mark": (start + b"N(\x85.", "not there"),
        "no mark": (start + b"t.", "mark that is not there"),
        "an item of text": (start + text("a") + b"NNs.", "sets an item of a str"),
        "half a pair": (start + b"}(" + text("a") + b"u.", "sets an item"),
        "append to a dict": (start + b"}Na.", "appends to a dict"),
        "a memory of nothing": (start + b"q\0.", "not there"),
        "a memory that is empty": (start + b"h\7.", "value 7"),
        "a text of 4 GB": (start + b"X\xff\xff\xff\xff.", "4294967295 bytes"),
        "a text of 513 bytes": (start + text("x" * 513) + b".", "a text of 513 bytes"),
        "a text that is not UTF-8": (start + b"X\1\0\0\0\xff.", "UTF-8"),
        "a number of 255 bytes": (start + b"\x8a\xff" + bytes(255) + b".", "255 bytes"),
        "LONG4 of 2 GB": (start + b"\x8b\xff\xff\xff\x7f.", "LONG4"),
        "BINBYTES8 of 2^63": (start + b"\x8e" + b"\xff" * 7 + b"\x7f.", "BINBYTES8"),
        "a frame of 2^63": (start + b"\x95" + b"\xff" * 7 + b"\x7f.", "FRAME"),
        "protocol 4": (b"\x80\x04.", "protocol 4"),
        "an opcode that is none": (start + b"\xff.", "0xff"),
        "a tuple 300,000 deep": (start + b")" + b"\x85" * 300_000 + b".", "opcodes"),
        "a list inside itself": (start + b"]q\0" + b"h\0a" * 3 + b".", "no dict"),
        "a billion laughs": (
            start + b"]" + b"".join(b"q%c(h%ch%ct" % (i, i, i) for i in range(60)) + b".",
            "more than one value",
        ),
        "300,000 dicts": (start + b"]" + b"}a" * 150_000 + b".", "opcodes"),
        "a stack of 100,000": (start + b"N" * 100_000 + b".", "stacks"),
        "a memory of 300,000": (
            start + b"}" + b"".join(b"r%b" % i.to_bytes(4, "little") for i in range(300_000)),
            "opcodes",
        ),
        "more than 4 MiB": (start + (b"X\xff\0\0\0" + b"x" * 255 + b"q\0") * 20_000, "bytes"),
    }  # fmt: skip
    return found | _calls()


BAD_PICKLES = _bad_pickles()


@pytest.fixture(params=BAD_PICKLES)
def bad_pickle(request: pytest.FixtureRequest) -> tuple[bytes, str]:
    return BAD_PICKLES[request.param]


@pytest.fixture(scope="session")
def bad_pickles() -> dict[str, tuple[bytes, str]]:
    return BAD_PICKLES


@pytest.fixture(scope="session")
def torch_files() -> SimpleNamespace:
    """The builders of this file, for the tests beside it."""
    return SimpleNamespace(
        view=view, state=state, zip=torch_zip, stream=torch_stream, storage=storage
    )
