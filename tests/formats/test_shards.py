"""Weights in one file or many, in either form: what agrees is read, what differs is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from miudo.errors import ModelFileError
from miudo.formats import ModelFile, open_model
from miudo.formats.export import export, weights_sha256
from miudo.formats.hf import write_folder
from miudo.formats.shards import weight_files

Make = Callable[..., ModelFile]
Same = Callable[[ModelFile, ModelFile], None]
WEIGHTS, PICKLED, INDEX = "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"


@pytest.fixture(scope="session")
def good(make_model: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    write_folder(folder, make_model("llama-untied"))
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "model")


def as_torch(folder: Path) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(t.copy()) for n, t in load_file(folder / WEIGHTS).items()}


def repickle(folder: Path) -> None:
    torch.save(as_torch(folder), folder / PICKLED)
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("form", [WEIGHTS, PICKLED])
def test_shards_are_the_whole(
    folder: Path, assert_same_weights: Same, form: str, parts: int
) -> None:
    whole = open_model(folder)
    held = as_torch(folder)
    listed: dict[str, str] = {}
    for i in range(parts):
        stem, suffix = form.split(".")
        shard = f"{stem}-{i + 1:05}-of-{parts:05}.{suffix}"
        part = {n: t for j, (n, t) in enumerate(held.items()) if j % parts == i}
        if form == PICKLED:
            torch.save(part, folder / shard)
        else:
            save_file({n: t.numpy() for n, t in part.items()}, folder / shard)
        listed |= dict.fromkeys(part, shard)
    (folder / WEIGHTS).unlink()
    (folder / f"{form}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    assert_same_weights(open_model(folder), whole)
    assert [path.name for path in weight_files(folder)] == sorted(set(listed.values()))


def test_safetensors_come_first_and_pickles_are_hashed_too(folder: Path) -> None:
    only = shutil.copytree(folder, folder.parent / "pickled")
    repickle(only)
    first = weights_sha256(only)
    both = shutil.copytree(folder, folder.parent / "both")
    (both / PICKLED).write_bytes(b"no weights at all")
    assert open_model(both).weights
    assert weights_sha256(both) == weights_sha256(folder) != first
    held = torch.load(only / PICKLED)
    torch.save({name: tensor + 1 for name, tensor in held.items()}, only / PICKLED)
    assert weights_sha256(only) != first


@pytest.mark.row("L12")
@settings(max_examples=25)
@given(data=st.data())
def test_every_difference_is_named_at_once(
    good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = shutil.copytree(good, tmp_path_factory.mktemp("model") / "model")
    held = load_file(folder / WEIGHTS)
    names = st.sampled_from(sorted(held))
    kinds = st.sampled_from(["drop", "turn", "grow", "rename"])
    plan = data.draw(st.dictionaries(names, kinds, min_size=1, max_size=6))
    said = []
    for name, kind in plan.items():
        array = held.pop(name)
        if kind == "turn" and array.shape == array.T.shape:
            kind = "grow"
        if kind in ("drop", "rename"):
            said.append(f"{name} is missing")
        if kind == "rename":
            held[f"{name}.old"] = array
            said.append(f"{name}.old is unknown")
        elif kind != "drop":
            held[name] = array.T.copy() if kind == "turn" else np.concatenate([array, array])
            said.append(f"{name} is {list(held[name].shape)}, the config wants {list(array.shape)}")
    save_file(held, folder / WEIGHTS)
    form = data.draw(st.sampled_from([WEIGHTS, PICKLED]))
    if form == PICKLED:
        repickle(folder)
    with pytest.raises(ModelFileError) as caught:
        open_model(folder)
    for what in said:
        assert what in str(caught.value)


@pytest.mark.row("L16")
@settings(max_examples=30)
@given(data=st.data())
def test_shards_load_exactly_where_index_and_files_agree(
    good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = shutil.copytree(good, tmp_path_factory.mktemp("model") / "model")
    held = load_file(folder / WEIGHTS)
    shards = ["a.safetensors", "b.safetensors"]
    listed = {name: data.draw(st.sampled_from(shards)) for name in sorted(held)}
    some = st.sampled_from(sorted(held))
    lies = data.draw(st.dictionaries(some, st.sets(st.sampled_from(shards)), max_size=3))
    for shard in set(listed.values()):
        part = {n: t for n, t in held.items() if shard in lies.get(n, {listed[n]})}
        save_file(part, folder / shard)
    there = {n: lies.get(n, {s}) & set(listed.values()) for n, s in listed.items()}
    wrong = [name for name, where in there.items() if where != {listed[name]}]
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": listed}))
    if not wrong:
        assert open_model(folder).weights
        return
    with pytest.raises(ModelFileError) as caught:
        open_model(folder)
    for name in wrong:
        assert name in str(caught.value)


@pytest.mark.row("L19")
@pytest.mark.parametrize("form", ["safetensors", "pickled", "gguf"])
@pytest.mark.parametrize("left", [0, 4096, -1])
def test_a_file_that_shrinks_while_open_ends_no_process(
    folder: Path, tmp_path: Path, form: str, left: int
) -> None:
    path, weights = folder, folder / WEIGHTS
    if form == "pickled":
        repickle(folder)
        weights = folder / PICKLED
    elif form == "gguf":
        path = weights = tmp_path / "m.gguf"
        export(folder, path, to="gguf")
    model = open_model(path)
    os.truncate(weights, left if left >= 0 else weights.stat().st_size - 1)
    with pytest.raises(ModelFileError, match="was cut from"):
        model.weights["norm.weight"]
    with pytest.raises(ModelFileError, match="was cut from"):
        write_folder(tmp_path / "out", model)
    assert not (tmp_path / "out").exists()
