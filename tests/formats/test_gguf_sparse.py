"""GGUF files with sparse matrices: ours alone, back bit for bit, damage named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miudo.errors import ModelFileError
from miudo.formats import ModelFile, open_model
from miudo.formats.blocks import encode, to_f32
from miudo.formats.gguf import write_gguf
from miudo.formats.gguf_reader import read_container
from miudo.formats.gguf_writer import write_container
from miudo.formats.hf import write_folder
from miudo.formats.sparse import sparse_weights
from miudo.tensors import DType, Role, StoredTensor, tensor_table

Make = Callable[..., ModelFile]
NAME = "layers.0.mlp.up.weight"


@pytest.fixture
def half(make_model: Make) -> ModelFile:
    """A model of Q4_0, half of whose blocks' numbers are zero, stored without them."""
    model = make_model("llama", d_model=64, n_heads=2, n_kv_heads=2, d_ff=96)
    config, weights = model.config, dict(model.weights)
    for spec in tensor_table(config):
        if spec.role in (Role.ATTENTION, Role.MLP):
            values = to_f32(weights[spec.name]).copy()
            values[:, ::2] = 0
            weights[spec.name] = encode(values, DType.Q4_0)
    return dataclasses.replace(model, weights=sparse_weights(config, weights))


def changed(source: Path, target: Path, keys: Mapping[str, Any], **tensors: Any) -> Path:
    """Writes `source` again with keys of text only, some others, and other bytes in places."""
    container = read_container(source)
    texts = {k: v for k, v in container.keys.items() if isinstance(v, str | int | float)}
    plain = {**container.plain, **tensors}
    held = [
        *container.tensors.items(),
        *((n, StoredTensor(DType.SPARSE4, (1, 32), d)) for n, d in plain.items() if d is not None),
    ]
    with target.open("wb") as file:
        write_container(file, {k: v for k, v in {**texts, **keys}.items() if v != ""}, held)
    return target


def test_it_comes_back_bit_for_bit(half: ModelFile, tmp_path: Path) -> None:
    path = tmp_path / "half.gguf"
    report = write_gguf(path, half)
    assert report.architecture == "miudo"
    assert report.dtypes[NAME] is DType.SPARSE4
    found = open_model(path)
    assert found.architecture == "miudo"
    for name, tensor in half.weights.items():
        assert found.weights[name].dtype is tensor.dtype
        assert found.weights[name].shape == tensor.shape
        assert found.weights[name].data.tobytes() == tensor.data.tobytes()
    sizes = sum(len(t.data) for t in half.weights.values())
    numbers = sum(int(np.prod(t.shape)) for t in half.weights.values())
    assert report.bits_per_weight == 8 * sizes / numbers
    again = tmp_path / "again.gguf"
    write_gguf(again, found)
    assert again.read_bytes() == path.read_bytes()


def test_other_types_and_folders_hold_its_zeros(half: ModelFile, tmp_path: Path) -> None:
    wanted = {name: to_f32(tensor) for name, tensor in half.weights.items()}
    report = write_gguf(tmp_path / "f32.gguf", half, dtype=DType.F32)
    assert report.architecture != "miudo"
    write_folder(tmp_path / "folder", half)
    for path in ("f32.gguf", "folder"):
        found = open_model(tmp_path / path)
        assert all(np.array_equal(to_f32(found.weights[n]), v) for n, v in wanted.items())


def test_only_our_own_files_hold_bytes(half: ModelFile, tmp_path: Path) -> None:
    path = tmp_path / "half.gguf"
    write_gguf(path, half)
    other = changed(path, tmp_path / "llama.gguf", {"general.architecture": "llama"})
    with pytest.raises(ModelFileError, match="has type I8"):
        open_model(other)


@pytest.mark.parametrize(
    ("types", "word"),
    [
        ("", "does not fit the tensors"),
        ("[]", "miudo.sparse"),
        ("{", "miudo.sparse"),
        ({NAME: "Q4_0"}, "unknown type 'Q4_0'"),
        ({NAME: 4}, "unknown type 4"),
        ({NAME: "SPARSE8"}, "ask for"),
        ({"nothing.weight": "SPARSE4"}, "does not fit the tensors: nothing.weight"),
    ],
)
def test_types_that_cannot_be(
    half: ModelFile, tmp_path: Path, types: str | dict[str, Any], word: str
) -> None:
    path = tmp_path / "half.gguf"
    write_gguf(path, half)
    text = types
    if not isinstance(types, str):
        held = json.loads(str(read_container(path).keys["miudo.sparse"]))
        text = json.dumps({**held, **types})
    with pytest.raises(ModelFileError, match=word):
        open_model(changed(path, tmp_path / "odd.gguf", {"miudo.sparse": text}))


def test_damaged_bytes_are_named(half: ModelFile, tmp_path: Path) -> None:
    path = tmp_path / "half.gguf"
    write_gguf(path, half)
    data = read_container(path).plain[NAME].copy()
    data[:4] = 255
    with pytest.raises(ModelFileError, match=NAME):
        open_model(changed(path, tmp_path / "odd.gguf", {}, **{NAME: data}))
    with pytest.raises(ModelFileError, match=NAME):
        open_model(changed(path, tmp_path / "less.gguf", {}, **{NAME: None}))
