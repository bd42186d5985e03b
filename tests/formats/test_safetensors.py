"""The safetensors reader: exactly the format, refused before anything is allocated."""

from __future__ import annotations

import json
import os
import socket
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from miudo.errors import MissingError, ModelFileError
from miudo.formats.safetensors import read_safetensors, write_safetensors
from miudo.tensors import DType, StoredTensor

MOST_MEMORY = 64 << 20  # what refusing a file may cost, by the catalogue of bad inputs


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def container(header: Any, data: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


VALID = container({"w": entry()}, np.arange(4, dtype="<f4").tobytes())


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ModelFileError) as caught:
        read_safetensors(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MOST_MEMORY + len(content)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_what_the_library_writes_is_read_without_a_copy(tmp_path: Path) -> None:
    tensors = {
        "a": np.arange(6, dtype="<f4").reshape(2, 3),
        "b": np.arange(4, dtype="<f2"),
        "empty": np.zeros((0, 3), dtype="<f4"),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    found = read_safetensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].shape == tensor.shape
        assert found[name].data.tobytes() == tensor.tobytes()
        assert not found[name].data.flags.writeable


def test_what_we_write_the_library_reads(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 5)).astype("<f4")
    half = StoredTensor(DType.F16, (2,), np.array([1, -2], dtype="<f2").view(np.uint8))
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        write_safetensors(file, [("a", StoredTensor.from_f32(values)), ("b", half)])
    found = load_file(path)
    np.testing.assert_array_equal(found["a"], values)
    np.testing.assert_array_equal(found["b"], [1, -2])
    assert read_safetensors(path)["b"].dtype is DType.F16


@pytest.mark.parametrize("size", range(8))
@pytest.mark.row("L1")
def test_a_few_bytes(tmp_path: Path, size: int) -> None:
    assert "too short" in refusal(tmp_path / "x", bytes(size))


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_001, len(VALID) + 1])
@pytest.mark.row("L2")
def test_a_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    assert str(length) in refusal(tmp_path / "x", struct.pack("<Q", length) + VALID[8:])


@pytest.mark.parametrize("second", [entry(), entry(offsets=[16, 32])])
@pytest.mark.row("L3")
def test_a_name_that_stands_twice(tmp_path: Path, second: dict[str, Any]) -> None:
    header = f'{{"w": {json.dumps(entry())}, "w": {json.dumps(second)}}}'.encode()
    assert "twice" in refusal(tmp_path / "x", container(header))


LAYOUTS = {
    "overlap": ({"a": entry(), "b": entry(offsets=[8, 24])}, 24, "overlaps"),
    "the same bytes": ({"a": entry(), "b": entry()}, 16, "overlaps"),
    "hole": ({"a": entry(), "b": entry(offsets=[20, 36])}, 36, "hole"),
    "hole at the start": ({"a": entry(offsets=[4, 20])}, 20, "hole"),
    "trailing bytes": ({"a": entry()}, 17, "holds 17"),
    "truncated": ({"a": entry()}, 15, "holds 15"),
    "no tensor but data": ({}, 4, "holds 4"),
}


@pytest.mark.parametrize(("header", "size", "word"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.row("L4")
def test_data_that_is_not_exactly_covered(
    tmp_path: Path, header: dict[str, Any], size: int, word: str
) -> None:
    assert word in refusal(tmp_path / "x", container(header, bytes(size)))


FIELDS = {
    "negative dimension": entry(shape=[-2, -2]),
    "float dimension": entry(shape=[2.0, 2]),
    "string dimension": entry(shape=["2", 2]),
    "huge dimension": entry(shape=[2**70]),
    "true as a dimension": entry(shape=[True, 4]),
    "null shape": entry(shape=None),
    "negative offset": entry(offsets=[-16, 0]),
    "float offset": entry(offsets=[0, 16.0]),
    "huge offset": entry(offsets=[0, 2**70]),
    "offsets backwards": entry(offsets=[16, 0]),
    "three offsets": entry(offsets=[0, 8, 16]),
    "product overflows to 0": entry(shape=[2**33, 2**33, 4]),
    "product overflows": entry(shape=[2**62, 4]),
    "nothing of an absurd size": entry(shape=[0, 2**62], offsets=[0, 0]),
    "nine dimensions": entry(shape=[2, 2, 1, 1, 1, 1, 1, 1, 1]),
    "unknown dtype": entry(dtype="F17"),
    "dtype of a list": entry(dtype=["F32"]),
    "unread dtype": entry(dtype="I32"),
    "bytes too few": entry(shape=[3, 2]),
    "bytes of another dtype": entry(dtype="F16"),
    "a field missing": {"dtype": "F32", "shape": [2, 2]},
    "a field too many": entry() | {"more": 1},
    "no object": [1, 2],
}


# The rest of FIELDS are numbers that are none: L5.
FIELD_ROWS = {
    "product overflows to 0": "L6", "product overflows": "L6", "nothing of an absurd size": "L7",
    "unknown dtype": "L8", "dtype of a list": "L8", "unread dtype": "L8", "bytes too few": "L8",
    "bytes of another dtype": "L8",
}  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(value, id=name, marks=pytest.mark.row(FIELD_ROWS.get(name, "L5")))
        for name, value in FIELDS.items()
    ],
)
def test_a_field_that_cannot_be(tmp_path: Path, value: Any) -> None:
    assert "tensor w" in refusal(tmp_path / "x", container({"w": value}))


HEADERS = {
    "exponent as a size": b'{"w":{"dtype":"F32","shape":[1e2],"data_offsets":[0,16]}}',
    "NaN": b'{"w":NaN}',
    "not JSON": b"{",
    "no object": b"[]",
    "not UTF-8": b'{"\xff":1}',
    "UTF-16": '{"w":1}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "deep": b'{"w":' * 100_000 + b"1" + b"}" * 100_000,
    "a number of 5000 digits": b'{"w":' + b"9" * 5000 + b"}",
    "metadata of numbers": b'{"__metadata__":{"a":1}}',
    "metadata no object": b'{"__metadata__":"a"}',
    "metadata of 2 MB": b'{"__metadata__":{"a":"' + b"x" * 2_000_000 + b'"}}',
}


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(h, id=n, marks=pytest.mark.row("L11" if n.startswith("metadata") else "L5"))
        for n, h in HEADERS.items()
    ],
)
def test_a_header_that_is_no_header(tmp_path: Path, header: bytes) -> None:
    refusal(tmp_path / "x", container(header))


@pytest.mark.row("L10")
def test_a_name_is_a_key_and_never_a_path(tmp_path: Path) -> None:
    names = ["../../x", "a\0b", "line\nbreak", "\u202ertl", "/etc/passwd"]
    header = {name: entry(shape=[1], offsets=[4 * i, 4 * i + 4]) for i, name in enumerate(names)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(container(header, bytes(4 * len(names))))
    assert list(read_safetensors(path)) == names
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x" * 513, "é" * 300, "x" * 1_000_000, "", "\ud800"])
@pytest.mark.row("L10")
def test_a_name_that_is_too_long_or_none(tmp_path: Path, name: str) -> None:
    if name == "\ud800":  # a lone surrogate is a name; printing it must not fail
        path = tmp_path / "x"
        path.write_bytes(container({name: entry(dtype="F17")}))
        with pytest.raises(ModelFileError) as caught:
            read_safetensors(path)
        str(caught.value).encode()
        return
    assert len(refusal(tmp_path / "x", container({name: entry()}))) < 2000


def test_buffers_to_skip_may_have_any_type(tmp_path: Path) -> None:
    header = {"h.0.attn.bias": entry(dtype="BOOL", shape=[16]), "w": entry(offsets=[16, 32])}
    path = tmp_path / "x"
    path.write_bytes(container(header, bytes(32)))
    assert list(read_safetensors(path, skip=("attn.bias",))) == ["w"]


@pytest.mark.row("L15")
def test_other_files_under_its_name(tmp_path: Path) -> None:
    refusal(tmp_path / "pickle", b"\x80\x04\x95" + bytes(200))
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("data.pkl", "x" * 100)
    packed = (tmp_path / "zip").read_bytes()
    refusal(tmp_path / "zip", packed)
    refusal(tmp_path / "both", VALID + packed)  # a zip archive may follow anything


@pytest.mark.parametrize("kind", ["folder", "fifo", "zero", "random", "socket", "loop", "absent"])
@pytest.mark.row("L18")
def test_a_path_that_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind in ("zero", "random"):
        path = Path("/dev") / kind
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.fspath(path))
    with pytest.raises((ModelFileError, MissingError)):
        read_safetensors(path)


@pytest.mark.row("L19")
def test_a_file_replaced_while_open_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(VALID)
    found = read_safetensors(path)["w"]
    (tmp_path / "new").write_bytes(bytes(8))
    (tmp_path / "new").replace(path)
    assert found.data.view("<f4").tolist() == [0, 1, 2, 3]


def accepted_or_refused(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        found = read_safetensors(path)
    except ModelFileError:
        return False
    for tensor in found.values():
        assert tensor.data.size == tensor.dtype.size_bytes(tensor.shape)
        tensor.data.sum()
    return True


@pytest.mark.row("L29")
def test_every_prefix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert accepted_or_refused(path, VALID)
    for n in range(len(VALID)):
        assert not accepted_or_refused(path, VALID[:n])


@pytest.mark.row("L29")
def test_every_flipped_bit_of_the_header(tmp_path: Path) -> None:
    path, header = tmp_path / "x", len(VALID) - 16
    accepted = 0
    for bit in range(8 * header):
        changed = bytearray(VALID)
        changed[bit // 8] ^= 1 << bit % 8
        accepted += accepted_or_refused(path, bytes(changed))
    assert accepted < 100  # a letter of a name, an F32 that became a BF16 of other size, ...
