"""`pytorch_model.bin` without pickle: the same bits as torch reads, and nothing else at all."""

from __future__ import annotations

import io
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miudo.errors import ModelFileError
from miudo.formats import ModelFile, open_model
from miudo.formats.hf import write_folder
from miudo.formats.pickle_machine import PickleMachine
from miudo.formats.tensor_pickle import read_tensor_pickle
from miudo.limits import Limits
from miudo.tensors import StoredTensor

Make = Callable[..., ModelFile]
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().clone(memory_format=torch.contiguous_format)
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def saved(path: Path, tensors: Any, *, archive: bool = True) -> Path:
    torch.save(tensors, path, _use_new_zipfile_serialization=archive)
    return path


def same(found: dict[str, StoredTensor], tensors: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert DTYPES[found[name].dtype.value] is tensor.dtype
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].data.tobytes() == bits(tensor), name


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        read_tensor_pickle(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """A tensor over part of a storage: cut, turned, stepped over, never expanded."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    whole = torch.arange(int(np.prod(shape)) or 1, dtype=torch.float32).to(dtype)
    tensor = whole[: int(np.prod(shape))].reshape(shape)
    axes = draw(st.permutations(range(len(shape))))
    tensor = tensor.permute(*axes)
    for axis in range(len(shape)):
        tensor = tensor.narrow(axis, 0, draw(st.integers(0, tensor.shape[axis])))
    return tensor[:: draw(st.integers(1, 2))]


@pytest.mark.parametrize("archive", [True, False])
@settings(max_examples=60)
@given(tensors=st.dictionaries(st.text("ab.0é", min_size=1, max_size=8), views(), max_size=4))
def test_any_views_have_the_bits_that_torch_sees(
    tmp_path_factory: pytest.TempPathFactory, archive: bool, tensors: dict[str, torch.Tensor]
) -> None:
    path = saved(tmp_path_factory.mktemp("views") / "x.bin", tensors, archive=archive)
    same(read_tensor_pickle(path), torch.load(path, weights_only=True))


@pytest.mark.parametrize("archive", [True, False])
def test_what_modules_save(tmp_path: Path, archive: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Embedding(7, 3), torch.nn.Linear(3, 7))
    module[1].weight = module[0].weight  # one storage, two names
    state = module.state_dict()
    state["attn.bias"] = torch.ones(2, 2, dtype=torch.bool)
    state["a.parameter"] = torch.nn.Parameter(torch.ones(2))
    found = read_tensor_pickle(saved(tmp_path / "x", state, archive=archive), skip=("attn.bias",))
    del state["attn.bias"]
    same(found, dict(state))
    one, two = found["0.weight"].data, found["1.weight"].data
    assert one.ctypes.data == two.ctypes.data
    for tensor in found.values():
        assert not tensor.data.flags.owndata
        assert not tensor.data.flags.writeable


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
)
@pytest.mark.row("L8")
def test_other_types_are_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    saved(tmp_path / "x", {"w": torch.ones(3, dtype=dtype)})
    kind = {"float": "F", "int": "I", "uint": "U"}[str(dtype)[6:].rstrip("0123456789")]
    assert f"tensor w: is {kind}{dtype.itemsize * 8}. miudo reads F32, F16 and BF16" in refusal(
        tmp_path / "x", (tmp_path / "x").read_bytes()
    )


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (torch.ones(2, dtype=torch.complex64), "ComplexFloatStorage"),
        (torch.ones(2, dtype=torch.float8_e4m3fn), "_rebuild_tensor_v3"),
        (torch.ones(2).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.ones(1).expand(1000), "1000 elements over 1 numbers"),
        (torch.nn.Linear(2, 2), "Linear"),
        ({"w": torch.ones(2)}, "is no tensor"),
        (1.5, "BINFLOAT"),
        ({1, 2}, "set"),
    ],
)
def test_what_torch_saves_and_no_model_needs(tmp_path: Path, made: Any, says: str) -> None:
    saved(tmp_path / "x", {"w": made})
    assert says in refusal(tmp_path / "x", (tmp_path / "x").read_bytes())


def test_every_opcode_is_known_or_refused_by_its_name() -> None:
    known = 0
    for opcode in pickletools.opcodes:
        machine = PickleMachine(memoryview(opcode.code.encode("latin1") + bytes(9)), "f")
        with pytest.raises(ModelFileError) as caught:
            machine.load()
        found = re.search(r"has the opcode (\w+) at byte 1 of", str(caught.value))
        known += found is None
        assert found is None or found[1] == opcode.name
    assert known == 30


@pytest.mark.row("L15")
def test_a_pickle_that_is_more_than_tensors(
    tmp_path: Path, bad_pickle: tuple[bytes, str], torch_files: SimpleNamespace
) -> None:
    content, says = bad_pickle
    assert says in refusal(tmp_path / "x", torch_files.zip(content))
    if "goes on" not in says and len(content) < 1 << 16:  # there the storages' keys follow
        refusal(tmp_path / "y", torch_files.stream(content, {"0": bytes(16)}))


@pytest.mark.row("L4")
@pytest.mark.parametrize(
    ("view", "says"),
    [
        ({"shape": [5]}, "ends at element 4 of a storage of 4"),
        ({"offset": 1}, "ends at element 4"),
        ({"strides": [2]}, "ends at element 6"),
        ({"shape": [2, 2], "strides": [1 << 61, 1]}, "ends at element"),
        ({"shape": [2, 4], "strides": [0, 1]}, "8 elements over 4 numbers"),
        ({"shape": [1 << 20, 1 << 20], "strides": [0, 0]}, "elements over 4"),
        ({"shape": [1 << 33, 1 << 33, 4], "strides": [0, 0, 1]}, "too large"),
        ({"shape": [0, 1 << 61], "strides": [1, 1]}, "too large"),
        ({"shape": [0], "offset": 5}, "ends at element 4"),
        ({"shape": [1] * 5, "strides": [1] * 5}, "too large"),
        ({"shape": [1 << 61] * 5000, "strides": [1] * 5000}, "too large"),
        ({"count": 5}, "storage 0 of 20 bytes has 16 bytes"),
        ({"count": 2**61}, "has 16 bytes"),
        ({"key": "1"}, "storage 1 of 16 bytes is not there"),
        ({"key": "../0"}, "storage ../0"),
        ({"kind": "HalfStorage"}, "storage 0 of 8 bytes has 16 bytes"),
    ],
    ids=str,
)
def test_a_view_that_leaves_its_storage(
    tmp_path: Path, view: dict[str, Any], says: str, torch_files: SimpleNamespace
) -> None:
    pickled = torch_files.state(("w", torch_files.view(**view)))
    assert says in refusal(tmp_path / "x", torch_files.zip(pickled))


@pytest.mark.row("L2")
@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ({"zip_members": 2}, "3 members, allowed 2"),
        ({"pickle_bytes": 100}, "data.pkl has"),
        ({"pickle_opcodes": 9}, "more than 9 opcodes"),
        ({"pickle_stack": 5}, "stacks more than 5"),
        ({"name_bytes": 5}, "zip directory is damaged"),
        ({"tensors": 1}, "no dict of tensors"),
        ({"tensor_dims": 0}, "too large"),
        ({"tensor_elements": 3}, "too large"),
    ],
    ids=str,
)
def test_limits_hold(
    tmp_path: Path, limit: dict[str, int], says: str, torch_files: SimpleNamespace
) -> None:
    held = torch_files.state(("w", torch_files.view()), ("x", torch_files.view()))
    (tmp_path / "x").write_bytes(torch_files.zip(held))
    assert len(read_tensor_pickle(tmp_path / "x")) == 2
    with pytest.raises(ModelFileError, match=says):
        read_tensor_pickle(tmp_path / "x", Limits(**limit))


@pytest.mark.row("L4")
def test_one_storage_turned_a_thousand_times_is_not_copied(
    tmp_path: Path, torch_files: SimpleNamespace
) -> None:
    over = {"shape": [512, 512], "strides": [1, 512], "count": 1 << 18}
    many = [(f"w{i}", torch_files.view(**over)) for i in range(1000)]
    content = torch_files.zip(torch_files.state(*many), {"0": bytes(1 << 20)})
    assert "out of order" in refusal(tmp_path / "x", content)


def rezipped(content: bytes, edit: Callable[[zipfile.ZipFile], None] | None = None) -> bytes:
    """The archive, with what `edit` adds to it."""
    out = io.BytesIO(content)
    with zipfile.ZipFile(out, "a") as archive:
        if edit:
            edit(archive)
    return out.getvalue()


def packed(content: bytes, method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return out.getvalue()


def changed(content: bytes, mark: bytes, offset: int, form: str, value: int) -> bytes:
    """A field of the first record that begins with `mark`, overwritten."""
    data = bytearray(content)
    struct.pack_into("<" + form, data, data.index(mark) + offset, value)
    return bytes(data)


LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
ZIPS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "compressed": (lambda z: packed(z, zipfile.ZIP_DEFLATED), "compressed (method 8)"),
    "a bomb": (
        lambda z: packed(rezipped(z, lambda a: a.writestr("archive/x", bytes(9 << 20))), 12),
        "compressed (method 12)",
    ),
    "encrypted": (lambda z: changed(z, CENTRAL, 8, "H", 1), "encrypted"),
    "cut": (lambda z: z[:-1], "does not end"),
    "followed": (lambda z: z + b"\0", "does not end"),
    "with a comment that is not there": (lambda z: changed(z, END, 20, "H", 1), "does not end"),
    "of 26 bytes that look like zip64": (
        lambda z: LOCAL + END + bytes(2) + b"PK\6\7" + bytes(12), "several"
    ),
    "with a comment": (lambda z: changed(z + b"x", END, 20, "H", 1), "does not end"),
    "preceded": (lambda z: LOCAL + z, "does not end at"),
    "a member at its end": (lambda z: changed(z, CENTRAL, 42, "I", len(z) - 9), "hole"),
    "a member later": (lambda z: changed(z, CENTRAL, 42, "I", 1), "hole"),
    "a larger member": (lambda z: changed(changed(z, CENTRAL, 20, "I", 9999), CENTRAL, 24, "I",
                                          9999), "contradicts"),
    "sizes that differ": (lambda z: changed(z, CENTRAL, 24, "I", 1 << 31), "is stored in"),
    "a size of 64 bits that is not said": (lambda z: changed(z, CENTRAL, 24, "I", 2**32 - 1),
                                           "lacks the 64-bit"),
    "another name inside": (lambda z: changed(z, LOCAL, 30, "B", 0), "contradicts"),
    "another method inside": (lambda z: changed(z, LOCAL, 8, "H", 8), "contradicts"),
    "another size inside": (lambda z: changed(z, LOCAL, 18, "I", 7), "contradicts"),
    "a count too many": (lambda z: changed(changed(z, END, 8, "H", 9), END, 10, "H", 9),
                         "9 members"),
    "a count too few": (lambda z: changed(changed(z, END, 8, "H", 1), END, 10, "H", 1),
                        "foreign bytes"),
    "65,535 members": (lambda z: changed(changed(z, END, 8, "H", 65535), END, 10, "H", 65535),
                       "65535 members"),
    "another disk": (lambda z: changed(z, END, 4, "H", 1), "several"),
    "a directory elsewhere": (lambda z: changed(z, END, 16, "I", 3), "does not end at"),
    "a directory of 4 GB": (lambda z: changed(z, END, 12, "I", 2**32 - 1), "does not end at"),
    "a long name": (lambda z: changed(z, CENTRAL, 28, "H", 65535), "damaged"),
    "a long extra field": (lambda z: changed(z, CENTRAL, 30, "H", 65535), "truncated"),
    "two folders": (lambda z: rezipped(z, lambda a: a.writestr("x/data.pkl", b"")),
                    "without data.pkl"),
    "no folder": (lambda z: packed_as(z, ""), "without data.pkl"),
    "a path that leads out": (lambda z: packed_as(z, "../../"), "without data.pkl"),
    "nothing": (lambda _: rezipped(b""), "nothing that torch.save"),
}  # fmt: skip


def packed_as(content: bytes, prefix: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(prefix + name.removeprefix("archive/"), old.read(name))
    return out.getvalue()


@pytest.mark.row("L4")
@pytest.mark.parametrize(("damage", "says"), ZIPS.values(), ids=ZIPS)
def test_an_archive_that_cannot_be(
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    says: str,
    torch_files: SimpleNamespace,
) -> None:
    good = torch_files.zip(torch_files.state(("w", torch_files.view())))
    (tmp_path / "good").write_bytes(good)
    assert read_tensor_pickle(tmp_path / "good")["w"].data.tobytes() == bytes(16)
    assert says in refusal(tmp_path / "x", damage(good))


@pytest.mark.row("L3")
@pytest.mark.parametrize("name", ["data.pkl", "data/0", "byteorder"])
def test_a_member_that_stands_twice(
    tmp_path: Path, name: str, torch_files: SimpleNamespace
) -> None:
    good = torch_files.zip(torch_files.state(("w", torch_files.view())))
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = rezipped(good, lambda a: a.writestr(f"archive/{name}", bytes(16)))
    assert "stands twice" in refusal(tmp_path / "x", twice)


ZIP64 = {
    "a record elsewhere": (b"PK\6\7", 8, "Q", 5, "not where"),
    "a record past the end": (b"PK\6\7", 8, "Q", 2**63, "not where"),
    "a record of another length": (b"PK\6\6", 4, "Q", 2**64 - 1, "damaged"),
    "another count": (b"PK\6\6", 32, "Q", 2**64 - 1, "disagree"),
    "another size": (b"PK\6\6", 40, "Q", 2**63, "disagree"),
    "another start": (b"PK\6\6", 48, "Q", 0, "disagree"),
    "another disk": (b"PK\6\6", 16, "I", 7, "several"),
}


@pytest.mark.row("L2")
@pytest.mark.parametrize(("mark", "offset", "form", "value", "says"), ZIP64.values(), ids=ZIP64)
def test_a_zip64_record_that_lies(
    tmp_path: Path, mark: bytes, offset: int, form: str, value: int, says: str
) -> None:
    content = saved(tmp_path / "x", {"w": torch.ones(4)}).read_bytes()
    assert says in refusal(tmp_path / "x", changed(content, mark, offset, form, value))
    # The 32-bit fields may say "see there": then the 64-bit ones are believed, and checked.
    unsaid = changed(content, END, 12, "I", 2**32 - 1)
    (tmp_path / "y").write_bytes(unsaid)
    assert read_tensor_pickle(tmp_path / "y")
    for at in (32, 40, 48):
        refusal(tmp_path / "z", changed(unsaid, b"PK\6\6", at, "Q", 2**63))


def widened(content: bytes, name: bytes, *, lie: int = 0, length: int = 24) -> bytes:
    """One member's sizes and place moved to the 64-bit field, as for files beyond 4 GiB."""
    end = content.index(END)
    at = content.rindex(CENTRAL, 0, content.rindex(name))
    entry = bytearray(content[at : at + 46])
    sizes = struct.unpack_from("<2I", entry, 20)
    (header,) = struct.unpack_from("<I", entry, 42)
    struct.pack_into("<2I", entry, 20, 2**32 - 1, 2**32 - 1)
    struct.pack_into("<I", entry, 42, 2**32 - 1)
    struct.pack_into("<H", entry, 30, 5 + 4 + 24)
    extra = struct.pack("<HHB", 9, 1, 0)  # of another kind, to be passed over
    extra += struct.pack("<HH3Q", 1, length, *sizes, header + lie)
    after = at + 46 + len(name)
    whole = content[:at] + bytes(entry) + name + extra + content[after:end] + content[end:]
    size = struct.unpack_from("<I", content, end + 12)[0] + len(extra)
    return changed(whole, END, 12, "I", size)


@pytest.mark.row("L2")
@pytest.mark.parametrize("name", [b"archive/data.pkl", b"archive/byteorder", b"archive/data/0"])
def test_sizes_of_64_bits(tmp_path: Path, name: bytes, torch_files: SimpleNamespace) -> None:
    good = torch_files.zip(torch_files.state(("w", torch_files.view())))
    (tmp_path / "x").write_bytes(widened(good, name))
    assert read_tensor_pickle(tmp_path / "x")["w"].data.size == 16
    for lie in (1, 2**40, 2**63):
        refusal(tmp_path / "x", widened(good, name, lie=lie))
    for length in (8, 16, 25, 2**16 - 1):
        text = refusal(tmp_path / "x", widened(good, name, length=length))
        assert "lacks the 64-bit sizes" in text


@pytest.mark.row("L4")
@pytest.mark.parametrize("order", [b"big", b"", b"little\n"])
def test_big_endian_numbers(tmp_path: Path, order: bytes, torch_files: SimpleNamespace) -> None:
    pickled = torch_files.state(("w", torch_files.view()))
    assert "big-endian" in refusal(tmp_path / "x", torch_files.zip(pickled, byteorder=order))
    (tmp_path / "old").write_bytes(torch_files.zip(pickled, byteorder=None))
    assert read_tensor_pickle(tmp_path / "old")["w"].data.tobytes() == bytes(16)


@pytest.mark.row("L15")
def test_a_stream_that_cannot_be(tmp_path: Path, torch_files: SimpleNamespace) -> None:
    path, pickled = tmp_path / "x", torch_files.state(("w", torch_files.view()))
    good = torch_files.stream(pickled, {"0": bytes(16)})
    path.write_bytes(good)
    assert read_tensor_pickle(path)["w"].data.tobytes() == bytes(16)
    damaged = {
        "4 numbers or is cut off": good[:-1],
        "1 bytes follow": good + b"\0",
        "no stream of version": good.replace(b"M\xe9\x03", b"M\xea\x03"),
        "big-endian": good.replace(b"\x88u.", b"\x89u."),
        "5 numbers": good.replace(b"\4" + bytes(7 + 16), b"\5" + bytes(7 + 16)),
        "without a list": good.replace(b"](X\1\0\0\0000e.", b"}(X\1\0\0\0000Nu."),
        "other storages": torch_files.stream(pickled, {"1": bytes(16)}),
        "names os.system": good.replace(b"](X\1\0\0\0000e.", b"cos\nsystem\n."),
        "nothing that torch.save": b"\x80\x02}.",
    }
    for says, content in damaged.items():
        assert says in refusal(path, content)
    assert "other storages" in refusal(
        path, torch_files.stream(pickled, {"0": bytes(16), "1": bytes(4)})
    )


def accepted_or_refused(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        found = read_tensor_pickle(path)
    except ModelFileError:
        return False
    for tensor in found.values():
        assert tensor.data.size == tensor.dtype.size_bytes(tensor.shape)
        tensor.data.sum()
    return True


@pytest.mark.row("L29")
@pytest.mark.parametrize("archive", [True, False])
def test_every_prefix_and_every_flipped_bit(tmp_path: Path, archive: bool) -> None:
    tensors = {"w": torch.arange(4.0), "t": torch.ones(2, 2).T}
    content = saved(tmp_path / "good", tensors, archive=archive).read_bytes()
    path = tmp_path / "x"
    assert accepted_or_refused(path, content)
    for n in range(0, len(content), 19):
        assert not accepted_or_refused(path, content[:n])
    accepted = 0
    for bit in range(0, 8 * len(content), 43):  # 43 is prime: all bits of a byte get their turn
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        accepted += accepted_or_refused(path, bytes(flipped))
    assert accepted  # a number, a letter of a name, padding


_PARTS = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.sampled_from(
        [b"(", b"t", b"R", b"Q", b"b", b"u", b"s", b"]", b"}", b")", b"a", b"e", b"N", b"q\0",
         b"h\0", b"\x85", b"\x86", b"\x87", b"\x88", b"K\4", b"X\1\0\0\0w",
         b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n",
         b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n"]
    ),
)  # fmt: skip


@pytest.mark.row("L15")
@settings(max_examples=400)
@given(parts=st.lists(_PARTS, max_size=40))
def test_no_sequence_of_opcodes_gets_past_the_machine(parts: list[bytes]) -> None:
    machine = PickleMachine(memoryview(b"\x80\x02" + b"".join(parts) + b"."), "f")
    try:
        value = machine.load()
    except ModelFileError:
        return
    allowed = (type(None), bool, int, str, tuple, list, dict)
    assert isinstance(value, allowed) or type(value).__module__.startswith("miudo.formats")


@pytest.mark.parametrize("archive", [True, False])
def test_a_folder_of_pickles_is_the_folder_of_safetensors(
    any_model: ModelFile, tmp_path: Path, assert_same_weights: Callable[..., None], archive: bool
) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "model"
    write_folder(folder, any_model)
    before = open_model(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    saved(folder / "pytorch_model.bin", tensors, archive=archive)
    found = open_model(folder)
    assert found.config == before.config
    assert_same_weights(found, before)
