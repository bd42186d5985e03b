"""The GGUF container: every bound checked, whatever a file says."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miudo.errors import MiudoError, ModelFileError
from miudo.formats import ModelFile, open_model
from miudo.formats.gguf import write_gguf
from miudo.formats.gguf_reader import read_container
from miudo.formats.gguf_writer import write_container
from miudo.tensors import DType, StoredTensor

MOST_MEMORY = 64 << 20


def text(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: bytes | str, kind: int, body: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + body


def info(name: bytes | str = "w", dims: Any = (4,), kind: int = 0, offset: int = 0) -> bytes:
    packed = b"".join(struct.pack("<Q", d) for d in dims)
    return text(name) + struct.pack("<I", len(dims)) + packed + struct.pack("<IQ", kind, offset)


def container(
    keys: list[bytes], infos: list[bytes], data: bytes = b"", *, head: bytes | None = None,
    alignment: int = 32,
) -> bytes:  # fmt: skip
    start = head or struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(keys))
    whole = start + b"".join(keys) + b"".join(infos)
    return whole + bytes(-len(whole) % alignment) + data


FOUR = np.arange(4, dtype="<f4").tobytes()
NAME = key("general.name", 8, text("x"))
VALID = container([NAME], [info()], FOUR)


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ModelFileError) as caught:
        read_container(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MOST_MEMORY
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_scalars_arrays_and_tensors(tmp_path: Path) -> None:
    keys = {"a": "é", "b": 7, "c": 0.5, "d": True, "e": ["x", "yz"], "f": [1, -2], "g": [0.5]}
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    path = tmp_path / "x"
    with path.open("wb") as file:
        write_container(file, keys, [("w", StoredTensor.from_f32(values))])
    found = read_container(path)
    assert {k: found.keys[k] for k in "abcd"} == {k: keys[k] for k in "abcd"}
    assert found.strings("e") == ["x", "yz"]
    assert found.numbers("f", {5}).tolist() == [1, -2]
    assert found.tensors["w"].shape == (2, 3)
    np.testing.assert_array_equal(found.tensors["w"].data.view("<f4"), values.reshape(-1))
    for wrong in (lambda: found.strings("f"), lambda: found.numbers("f", {6}),
                  lambda: found.strings("absent"), lambda: found.strings("a")):  # fmt: skip
        with pytest.raises(ModelFileError, match="no array of the kind"):
            wrong()


def head(magic: bytes = b"GGUF", version: int = 3, tensors: int = 1, keys: int = 1) -> bytes:
    return struct.pack("<4sIQQ", magic, version, tensors, keys)


HEADS = {
    "another magic": head(magic=b"GGML"),
    "version 0": head(version=0),
    "version 1": head(version=1),
    "version 4": head(version=4),
    "big endian": struct.pack(">4sIQQ", b"GGUF", 3, 1, 1),
    "2^64-1 keys": head(keys=2**64 - 1),
    "2^63 keys": head(keys=2**63),
    "2^64-1 tensors": head(tensors=2**64 - 1),
    "2^63 tensors": head(tensors=2**63),
    "a key too many": head(keys=2),
    "a tensor too many": head(tensors=2),
    "a tensor too few": head(tensors=0),
}
COUNTED = ("keys", "tensors", "many", "few")


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(h, id=n, marks=pytest.mark.row("L21" if n.endswith(COUNTED) else "L20"))
        for n, h in HEADS.items()
    ],
)
def test_a_head_that_cannot_be(tmp_path: Path, start: bytes) -> None:
    refusal(tmp_path / "x", container([NAME], [info()], FOUR, head=start))


BAD_KEYS = {
    "length -1": struct.pack("<q", -1) + b"abc",
    "empty": key("", 8, text("x")),
    "twice": NAME + NAME,
    "not UTF-8": key(b"\xff\xfe", 8, text("x")),
    "longer than 512 bytes": key("x" * 513, 8, text("x")),
    "value type 13": key("a", 13, bytes(8)),
    "value type 255": key("a", 255, bytes(8)),
    "a string of 2^63 bytes": key("a", 8, struct.pack("<Q", 2**63)),
    "a string that is not UTF-8": key("a", 8, text(b"\xff")),
    "an array of 2^62 numbers": key("a", 9, struct.pack("<IQ", 4, 2**62)),
    "an array of 2^62 strings": key("a", 9, struct.pack("<IQ", 8, 2**62)),
    "an array of a million absent strings": key("a", 9, struct.pack("<IQ", 8, 10**6)),
    "an array of arrays": key("a", 9, struct.pack("<IQ", 9, 1)),
    "an array of type 99": key("a", 9, struct.pack("<IQ", 99, 1)),
    "an array with a string past the end": key("a", 9, struct.pack("<IQQ", 8, 1, 2**64 - 9)),
}


@pytest.mark.parametrize("bad", BAD_KEYS.values(), ids=BAD_KEYS)
@pytest.mark.row("L22")
def test_a_key_that_cannot_be(tmp_path: Path, bad: bytes) -> None:
    count = 2 if bad == NAME + NAME else 1
    refusal(tmp_path / "x", container([bad], [], head=head(tensors=0, keys=count)))


@pytest.mark.parametrize(
    "value",
    [(4, struct.pack("<I", n)) for n in (0, 1, 13, 4, 2**31)]
    + [(10, struct.pack("<Q", 2**63)), (8, text("32")), (6, struct.pack("<f", 32)), (7, b"\1"),
       (5, struct.pack("<i", -32))],
)  # fmt: skip
@pytest.mark.row("L23")
def test_an_alignment_that_cannot_be(tmp_path: Path, value: tuple[int, bytes]) -> None:
    content = container([key("general.alignment", *value)], [info()], FOUR)
    assert "general.alignment" in refusal(tmp_path / "x", content)


def test_another_alignment(tmp_path: Path) -> None:
    keys = [key("general.alignment", 4, struct.pack("<I", 64))]
    infos = [info("a"), info("b", offset=64)]
    (tmp_path / "x").write_bytes(container(keys, infos, FOUR + bytes(48) + FOUR, alignment=64))
    found = read_container(tmp_path / "x").tensors
    assert found["b"].data.view("<f4").tolist() == [0, 1, 2, 3]


INFOS = {
    "no dimension": [info(dims=())],
    "five dimensions": [info(dims=(1, 1, 1, 1, 4))],
    "2^32-1 dimensions": [text("w") + struct.pack("<I", 2**32 - 1) + bytes(64)],
    "a dimension of 0": [info(dims=(0, 4))],
    "a product over 2^64": [info(dims=(2**33, 2**33, 4))],
    "a product of 2^64": [info(dims=(2**32, 2**32))],
    "a row that is no block": [info(dims=(33,), kind=8)],
    "type IQ2_S": [info(kind=22)],
    "type 99": [info(kind=99)],
    "a name twice": [info(), info(offset=32)],
    "no name": [info(name="")],
    "a name of 513 bytes": [info(name="x" * 513)],
    "offset past the end": [info(offset=2**40)],
    "offset that wraps": [info(offset=2**64 - 16)],
    "misaligned": [info("a"), info("b", offset=16)],
    "overlapping": [info("a"), info("b", offset=0)],
    "a hole": [info("a"), info("b", offset=64)],
    "a hole at the start": [info(offset=32)],
    "more than there is": [info(dims=(40,))],
}


PLACES = ("offset", "misaligned", "overlapping", "a hole", "more than")


@pytest.mark.parametrize(
    "infos",
    [
        pytest.param(i, id=n, marks=pytest.mark.row("L25" if n.startswith(PLACES) else "L24"))
        for n, i in INFOS.items()
    ],
)
def test_a_tensor_that_cannot_be(tmp_path: Path, infos: list[bytes]) -> None:
    refusal(tmp_path / "x", container([NAME], infos, FOUR + bytes(112)))


@pytest.mark.row("L24")
def test_an_unread_type_is_named(tmp_path: Path) -> None:
    found = refusal(tmp_path / "x", container([], [info(kind=29)], FOUR))
    assert "IQ1_M" in found
    assert all(dtype in found for dtype in DType if not dtype.sparse)


@pytest.mark.row("L25")
def test_trailing_bytes(tmp_path: Path) -> None:
    assert "follow the last tensor" in refusal(tmp_path / "x", VALID + bytes(16 + 32))


def test_a_vocabulary_of_150000_is_passed_over(tmp_path: Path) -> None:
    """Opening makes no object a word but a number: their list alone would take 10 MB."""
    words = [f"word{i}" for i in range(150_000)]
    path = tmp_path / "x"
    with path.open("wb") as file:
        write_container(file, {"tokens": words}, [])
    tracemalloc.start()
    found = read_container(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 << 20
    assert found.strings("tokens") == words


def accepted_or_refused(path: Path, content: bytes, read: Callable[[Path], Any]) -> bool:
    path.write_bytes(content)
    try:
        found = read(path)
    except MiudoError:
        return False
    tensors = found.weights if isinstance(found, ModelFile) else found.tensors
    for tensor in tensors.values():
        assert tensor.data.size == tensor.dtype.size_bytes(tensor.shape)
        tensor.data.sum()
    return True


@pytest.mark.row("L29")
def test_every_prefix_and_every_flipped_bit(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert accepted_or_refused(path, VALID, read_container)
    for n in range(len(VALID)):
        assert not accepted_or_refused(path, VALID[:n], read_container)
    for bit in range(8 * (len(VALID) - 16)):
        changed = bytearray(VALID)
        changed[bit // 8] ^= 1 << bit % 8
        accepted_or_refused(path, bytes(changed), read_container)


@pytest.mark.filterwarnings("ignore:.*not finite")
@pytest.mark.row("L29")
def test_flipped_bits_and_prefixes_of_a_whole_model(
    make_model: Callable[..., ModelFile], tmp_path: Path
) -> None:
    path = tmp_path / "x"
    model = make_model(n_layers=1, d_model=8, n_heads=2, n_kv_heads=1, d_ff=8, vocab_size=16)
    write_gguf(path, model)
    content = path.read_bytes()
    start = content.rindex(b"output_norm.weight") + 40  # the data begins after
    accepted = 0
    for at in range(0, 8 * start, 41):  # 41 is prime: all bits of a byte get their turn
        changed = bytearray(content)
        changed[at // 8] ^= 1 << at % 8
        accepted += accepted_or_refused(path, bytes(changed), open_model)
    assert accepted  # a letter of the template, say
    for n in range(0, len(content), 61):
        assert not accepted_or_refused(path, content[:n], open_model)
