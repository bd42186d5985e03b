"""Every family's models and adapters, into its files and back, to the bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from family_examples import EXAMPLES, IDS, LAYERS, SHAPE

from miudo.adapter import Adapter, LowRank
from miudo.config import ModelConfig, Position
from miudo.errors import ModelFileError
from miudo.families import FAMILIES, by_hf_config, for_gguf
from miudo.families.family import Family
from miudo.families.fit import gguf_misfit, hf_misfit
from miudo.formats import ModelFile, open_model
from miudo.formats.blocks import to_f32
from miudo.formats.gguf import write_gguf
from miudo.formats.gguf_adapter import read_gguf_adapter, write_gguf_adapter
from miudo.formats.gguf_reader import ArrayAt, read_container
from miudo.formats.gguf_writer import write_container
from miudo.formats.hf import write_folder
from miudo.formats.peft import read_peft, write_peft
from miudo.formats.safetensors import read_safetensors, write_safetensors
from miudo.records import Record
from miudo.tensors import DType, Role, StoredTensor, tensor_table


def named(family: Family) -> ModelFile:
    """A model of `family` whose every number is noise, norms near 1 and exactly so."""
    config = ModelConfig.uniform(**(SHAPE | EXAMPLES[family.name] | IDS))
    layers = [dataclasses.replace(config.layers[0], **own) for own in LAYERS.get(family.name, ())]
    config = dataclasses.replace(config, layers=tuple(layers) or config.layers)
    rng = np.random.default_rng(7)
    weights = {}
    for spec in tensor_table(config):
        values = rng.standard_normal(spec.shape)
        if spec.role is Role.NORM:
            values = 1 + np.round(values * 64) / 512
        weights[spec.name] = StoredTensor.from_f32(values.astype(np.float32))
    return ModelFile(config, weights, None, None, None, family.architectures[0], None)


@pytest.fixture(params=FAMILIES, ids=lambda f: f.name)
def model(request: pytest.FixtureRequest) -> ModelFile:
    return named(request.param)


def family_of(model: ModelFile) -> Family:
    return next(f for f in FAMILIES if model.architecture in f.architectures)


def same(found: ModelFile, model: ModelFile) -> None:
    assert found.config == model.config
    for name, tensor in model.weights.items():
        np.testing.assert_array_equal(to_f32(found.weights[name]), to_f32(tensor), err_msg=name)


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16])
def test_a_folder_and_back(model: ModelFile, dtype: DType, tmp_path: Path) -> None:
    notes = write_folder(tmp_path / "out", model, dtype=dtype)
    family = family_of(model)
    assert [note for note in notes if "authors' code" in note] == [*notes] * family.foreign
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    if hf_misfit(family, model.config) is None:  # else another family holds it
        assert written["architectures"] == [model.architecture]
    found = open_model(tmp_path / "out")
    if dtype is DType.F32:
        same(found, model)
        return
    # Half precision is what the file holds: where it lacks 1, that is added after rounding.
    write_folder(tmp_path / "again", found, dtype=dtype)
    same(open_model(tmp_path / "again"), found)


def test_a_folder_as_it_is_found(model: ModelFile, tmp_path: Path) -> None:
    """Of the bare model, with buffers that mean nothing, and silent about the head."""
    write_folder(tmp_path / "out", model)
    family = by_hf_config(json.loads((tmp_path / "out" / "config.json").read_text()))
    file = tmp_path / "out" / "model.safetensors"
    mapped = read_safetensors(file)  # of the file that is written anew
    stored = {k: dataclasses.replace(t, data=t.data.copy()) for k, t in mapped.items()}
    head = family.hf_names["head.weight"]
    bare = {k if k == head else k.removeprefix(family.hf_prefix): t for k, t in stored.items()}
    buffer = StoredTensor.from_f32(np.ones(3, np.float32))
    bare |= {f"layers.{i}{end}": buffer for i, end in enumerate(family.hf_ignored)}
    with file.open("wb") as opened:
        write_safetensors(opened, iter(bare.items()))
    config = tmp_path / "out" / "config.json"
    values = json.loads(config.read_text())
    values.pop("tie_word_embeddings", None)
    config.write_text(json.dumps(values | {"auto_map": {"AutoModel": "evil.Model"}}))
    same(open_model(tmp_path / "out"), model)


def test_a_gguf_file_and_back(model: ModelFile, tmp_path: Path) -> None:
    report = write_gguf(tmp_path / "m.gguf", model)
    known = for_gguf(model.config)
    assert report.architecture == (known.gguf_architecture if known else "miudo")
    assert known is not None or gguf_misfit(family_of(model), model.config) is not None
    same(open_model(tmp_path / "m.gguf"), model)


@pytest.mark.parametrize(
    "key",
    ["block_count", "attention.key_length", "attention.value_length", "rope.dimension_count"],
)
def test_a_size_that_the_file_s_other_keys_deny(model: ModelFile, key: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", model)
    found = read_container(tmp_path / "m.gguf")
    architecture = found.keys["general.architecture"]
    if architecture == "miudo" or (model.config.position is not Position.ROPE and "rope" in key):
        pytest.skip("has no such key")
    keys = {
        k: found.numbers(k, {v.kind}).tolist() if isinstance(v, ArrayAt) else v
        for k, v in found.keys.items()
        if not k.startswith("tokenizer.")
    }
    with (tmp_path / "odd.gguf").open("wb") as file:
        write_container(file, keys | {f"{architecture}.{key}": 10}, [*found.tensors.items()])
    with pytest.raises(ModelFileError):
        open_model(tmp_path / "odd.gguf")


def noise_beside(model: ModelFile) -> Adapter:
    """A pair on every other matrix of the blocks, so that parts of fused ones stay alone."""
    rng = np.random.default_rng(5)
    specs = [s for s in tensor_table(model.config) if s.role in (Role.ATTENTION, Role.MLP)]
    parts = {
        spec.name: LowRank(
            rng.standard_normal((3, spec.shape[1])).astype(np.float32),
            rng.standard_normal((spec.shape[0], 3)).astype(np.float32),
            0.5,
        )
        for spec in specs[::2]
    }
    return Adapter(parts, base=None, tokenizer=None)


def corrections(adapter: Adapter) -> dict[str, np.ndarray]:
    return {name: part.scale * (part.up @ part.down) for name, part in adapter.parts.items()}


def same_effect(found: Adapter, given: Adapter) -> None:
    theirs, ours = corrections(found), corrections(given)
    for name, correction in ours.items():
        np.testing.assert_allclose(theirs[name], correction, atol=1e-5, err_msg=name)
    # What shares a matrix with a corrected one may come back corrected by nothing.
    assert not any(theirs[name].any() for name in theirs.keys() - ours.keys())


def test_an_adapter_and_back(model: ModelFile, tmp_path: Path) -> None:
    given, record = noise_beside(model), Record(verb="finetune", name="noise")
    write_peft(tmp_path / "peft", given, model.config, like=model.architecture, record=record)
    same_effect(read_peft(tmp_path / "peft", model.config), given)
    write_gguf_adapter(tmp_path / "a.gguf", model.config, given)
    same_effect(read_gguf_adapter(tmp_path / "a.gguf", model.config), given)


def test_an_adapter_s_fused_matrix_is_the_file_s(tmp_path: Path) -> None:
    """What a pair adds to the file's matrix is what it adds to ours, moved as the matrix is."""
    model = named(next(f for f in FAMILIES if f.name == "neox"))
    given = noise_beside(model)
    write_peft(tmp_path / "peft", given, model.config, record=Record(verb="finetune", name="noise"))
    factors = read_safetensors(tmp_path / "peft" / "adapter_model.safetensors")
    name = "base_model.model.gpt_neox.layers.0.attention.query_key_value.lora_{}.weight"
    scale = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    down, up = (to_f32(factors[name.format(x)]) for x in "AB")
    added = up @ down * (scale["lora_alpha"] / scale["r"])
    heads = added.reshape(4, 3, 8, 32)  # head, q or k or v, row, column
    parts = corrections(given)
    for i, part in enumerate("qkv"):
        wanted = parts.get(f"layers.0.attn.{part}.weight", np.zeros((32, 32)))
        np.testing.assert_allclose(heads[:, i].reshape(32, 32), wanted, atol=1e-5)


def test_an_adapter_of_a_galactica_has_its_names(tmp_path: Path) -> None:
    """Its config is also that of a GPT-2: the architecture of its files says whose names."""
    model = named(next(f for f in FAMILIES if f.name == "opt"))
    config = dataclasses.replace(model.config, activation=EXAMPLES["gpt2"]["activation"])
    given, record = noise_beside(model), Record(verb="finetune", name="noise")
    for like, module in (("OPTForCausalLM", "q_proj"), ("GPT2LMHeadModel", "c_attn")):
        write_peft(tmp_path / like, given, config, like=like, record=record)
        targets = json.loads((tmp_path / like / "adapter_config.json").read_text())
        assert any(name.endswith(module) for name in targets["target_modules"])
        same_effect(read_peft(tmp_path / like, config), given)


def test_a_half_precision_norm_that_lacks_one_loses_nothing(tmp_path: Path) -> None:
    model = named(next(f for f in FAMILIES if f.name == "gemma3"))
    fine = np.full(32, 1 + 2.0**-12, np.float32)  # no bfloat16, and neither is its half
    weights = dict(model.weights) | {"norm.weight": StoredTensor.from_f32(fine)}
    model = dataclasses.replace(model, weights=weights)
    write_folder(tmp_path / "out", model, dtype=DType.BF16)
    np.testing.assert_array_equal(to_f32(open_model(tmp_path / "out").weights["norm.weight"]), fine)


def test_layers_that_differ_are_not_padded_where_a_file_can_say_them(tmp_path: Path) -> None:
    model = named(next(f for f in FAMILIES if f.name == "openelm"))
    report = write_gguf(tmp_path / "m.gguf", model, dtype=DType.F32)
    assert (report.architecture, report.notes) == ("openelm", ())
    assert [layer.d_ff for layer in open_model(tmp_path / "m.gguf").config.layers] == [64, 96, 132]
