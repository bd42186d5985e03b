"""Good files with a few bytes changed: every reader returns, or refuses by a typed error.

Numbers that a format holds are where readers break, so a change is often one of those that no
field expects. `scripts/fuzz_readers.py` goes on from here with coverage for a guide.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miudo.errors import ModelFileError, TokenizerError
from miudo.formats import ModelFile, open_model
from miudo.formats.gguf import write_gguf
from miudo.formats.safetensors import read_safetensors, write_safetensors
from miudo.formats.tensor_pickle import read_tensor_pickle

Reader = Callable[[Path], Any]
NUMBERS = [
    struct.pack(form, value % (1 << bits))
    for form, bits in (("<B", 8), ("<H", 16), ("<I", 32), ("<Q", 64))
    for value in (0, 1, -1, 2, 7, 1 << (bits - 1), (1 << (bits - 1)) - 1, -16)
]
BYTES = st.one_of(st.sampled_from(NUMBERS), st.binary(max_size=12))
PLACE = st.floats(0, 1, exclude_max=True)


def overwritten(content: bytes, at: int, new: bytes, _: int) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def inserted(content: bytes, at: int, new: bytes, _: int) -> bytes:
    return content[:at] + new + content[at:]


def cut(content: bytes, at: int, new: bytes, other: int) -> bytes:
    return content[: min(at, other)] + content[max(at, other) :]


def twice(content: bytes, at: int, new: bytes, other: int) -> bytes:
    return content[: max(at, other)] + content[min(at, other) :]


def flipped(content: bytes, at: int, new: bytes, other: int) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << other % 8)]) + content[at + 1 :]


CHANGES = st.lists(
    st.tuples(
        st.sampled_from([overwritten, overwritten, inserted, cut, twice, flipped]),
        PLACE, PLACE, BYTES, st.booleans(),
    ),
    min_size=1, max_size=5,
)  # fmt: skip


def changed(
    content: bytes, changes: list[tuple[Callable[..., bytes], float, float, bytes, bool]]
) -> bytes:
    for change, at, other, new, early in changes:
        if not content:
            break
        # Heads are small and hold all the fields.
        end = min(len(content), 400) if early else len(content)
        content = change(content, int(at * end), new, int(other * end))
    return content


def safetensors_file(path: Path, model: ModelFile) -> Reader:
    with path.open("wb") as file:
        write_safetensors(file, list(model.weights.items())[:6])
    return read_safetensors


def gguf_file(path: Path, model: ModelFile) -> Reader:
    write_gguf(path, model)
    return open_model


def pickled(archive: bool) -> Callable[[Path, ModelFile], Reader]:
    def write(path: Path, _: ModelFile) -> Reader:
        file = io.BytesIO()
        tensors = {"w": torch.arange(6.0).reshape(2, 3).t(), "v": torch.ones(3).half()}
        torch.save(tensors, file, _use_new_zipfile_serialization=archive)
        path.write_bytes(file.getvalue())
        return read_tensor_pickle

    return write


FILES: dict[str, tuple[str, Callable[[Path, ModelFile], Reader]]] = {
    "safetensors": ("x.safetensors", safetensors_file),
    "gguf": ("x.gguf", gguf_file),
    "archive": ("x.bin", pickled(archive=True)),
    "stream": ("x.bin", pickled(archive=False)),
}


@pytest.mark.row("L29")
@pytest.mark.parametrize("kind", FILES)
def test_changed_files_are_read_or_refused(
    make_model: Callable[..., ModelFile], tmp_path: Path, kind: str
) -> None:
    name, write = FILES[kind]
    path = tmp_path / name
    read = write(path, make_model())
    good = path.read_bytes()
    refusals = 0

    @settings(max_examples=100, suppress_health_check=list(HealthCheck))
    @given(changes=CHANGES)
    def try_one(changes: list[tuple[Callable[..., bytes], float, float, bytes, bool]]) -> None:
        nonlocal refusals
        path.write_bytes(changed(good, changes))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that are not finite
            try:
                held = read(path)
            except (ModelFileError, TokenizerError) as refused:  # of the tokenizer inside
                refusals += name in str(refused)
            else:
                for tensor in getattr(held, "weights", held).values():
                    assert tensor.data.size == tensor.dtype.size_bytes(tensor.shape)
                    np.asarray(tensor.data).sum()  # every byte is there

    try_one()
    assert refusals > 20
