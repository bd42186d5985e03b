"""Hugging Face folders: round trips, what is missing listed whole, nothing run, nothing outside."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from miudo.config import Activation, QkNorm
from miudo.errors import MissingError, MiudoError, ModelFileError
from miudo.formats import ModelFile, open_model
from miudo.formats.hf import verify_folder, write_folder
from miudo.tensors import DType, StoredTensor

Make = Callable[..., ModelFile]
Same = Callable[[ModelFile, ModelFile], None]


@pytest.fixture
def folder(make_model: Make, tmp_path: Path) -> Path:
    write_folder(tmp_path / "model", make_model("llama-untied"))
    return tmp_path / "model"


def change(folder: Path, **values: Any) -> None:
    """Sets keys of config.json; None takes one out."""
    path = folder / "config.json"
    old = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in old.items() if v is not None}))


def retensor(folder: Path, edit: Callable[[dict[str, np.ndarray]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: array.copy() for name, array in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)


def refusal(folder: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        open_model(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_folder_holds_the_whole_model(
    any_model: ModelFile, tmp_path: Path, assert_same_weights: Same
) -> None:
    assert write_folder(tmp_path / "out", any_model) == ()
    found = open_model(tmp_path / "out")
    assert found.config == any_model.config
    assert found.tokenizer == any_model.tokenizer
    assert found.chat_template == any_model.chat_template
    assert found.record is not None
    assert dataclasses.replace(found.record, outputs={}) == any_model.record
    assert_same_weights(found, any_model)
    verify_folder(tmp_path / "out")


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_half_precision_folders_keep_their_bits(
    make_model: Make, tmp_path: Path, dtype: DType, assert_same_weights: Same
) -> None:
    write_folder(tmp_path / "one", make_model("gpt2"), dtype=dtype)
    first = open_model(tmp_path / "one")
    assert {t.dtype for t in first.weights.values()} == {dtype}
    write_folder(tmp_path / "two", first, dtype=dtype)
    assert_same_weights(open_model(tmp_path / "two"), first)


def test_nothing_is_copied_where_nothing_moves(folder: Path) -> None:
    for name, tensor in open_model(folder).weights.items():
        assert not tensor.data.flags.owndata, name
        assert not tensor.data.flags.writeable, name


def test_unequal_widths_are_padded_with_zeros(unequal_model: ModelFile, tmp_path: Path) -> None:
    notes = write_folder(tmp_path / "out", unequal_model)
    assert notes == ("1 layers padded with zeros to d_ff 64",)
    found = open_model(tmp_path / "out")
    down = found.weights["layers.1.mlp.down.weight"].data.view("<f4").reshape(32, 64)
    old = unequal_model.weights["layers.1.mlp.down.weight"].data.view("<f4").reshape(32, 33)
    np.testing.assert_array_equal(down[:, :33], old)
    assert not down[:, 33:].any()


@pytest.mark.row("L12")
def test_the_head_decides_where_the_config_does_not_say(folder: Path, make_model: Make) -> None:
    change(folder, tie_word_embeddings=None)
    assert not open_model(folder).config.tie_embeddings
    retensor(folder, lambda tensors: tensors.__delitem__("lm_head.weight"))
    assert open_model(folder).config.tie_embeddings
    change(folder, tie_word_embeddings=False)
    assert "lm_head.weight is missing" in refusal(folder)


def test_a_stray_head_of_a_tied_model_is_ignored(folder: Path) -> None:
    change(folder, tie_word_embeddings=True)
    assert "head.weight" not in open_model(folder).weights


def test_bare_names_and_buffers(
    make_model: Make, tmp_path: Path, assert_same_weights: Same
) -> None:
    model = make_model("gpt2")
    write_folder(tmp_path / "out", model)

    def edit(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 24, 24), dtype=bool)
        tensors["h.0.attn.masked_bias"] = np.float32([-1e4])

    retensor(tmp_path / "out", edit)
    assert_same_weights(open_model(tmp_path / "out"), model)


@pytest.mark.row("L17")
def test_a_shard_of_another_save_is_found_by_its_hash(folder: Path, make_model: Make) -> None:
    model = make_model("llama-untied")
    other = dict(model.weights)
    other["norm.weight"] = StoredTensor.from_f32(np.ones(32, dtype="<f4"))
    model = dataclasses.replace(model, weights=other)
    write_folder(folder.parent / "other", model)
    (folder.parent / "other" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"model\.safetensors.*another hash"):
        verify_folder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match="missing"):
        verify_folder(folder)


ABSURD = {
    "hidden_size": [2**31, -1, 0, 1.5, "32", True, [32], 10**39],
    "num_hidden_layers": [10**9, -1, 0, 2.0, "2"],
    "num_attention_heads": [0, -4, 2.5, 10**30, None],
    "num_key_value_heads": [0, 3, "2"],
    "head_dim": [0, 7, 2**40],
    "vocab_size": [2**31, 0, None],
    "rms_norm_eps": [-1, 2, "1e-5"],
    "rope_theta": ["10000", [1], {}],
    "attention_bias": ["false", 1],
    "hidden_act": ["tanh", 3, None, ["silu"]],
    "eos_token_id": [40, -7, "2", [1, "2"], {"a": 1}],
    "bos_token_id": [1.0, 40],
    "layer_types": [["sliding_attention"] * 2, "full", [[]]],
}
CASES = [(key, value) for key, values in ABSURD.items() for value in values]


@pytest.mark.parametrize(("key", "value"), CASES, ids=[f"{k}={v!r:.20}" for k, v in CASES])
@pytest.mark.row("L13")
def test_a_config_that_cannot_be(folder: Path, key: str, value: Any) -> None:
    if (key, value) == ("hidden_act", None):
        value = ""
    if key == "eos_token_id":
        (folder / "generation_config.json").unlink()
    if key == "rope_theta":
        change(folder, rope_parameters=None)
    change(folder, **{key: value})
    assert "config.json" in refusal(folder) or key == "num_key_value_heads"


@pytest.mark.parametrize(
    "text", [b'{"hidden_size": 1e999}', b"[]", b"", b"\xff", b"{", b'{"a":NaN}']
)
@pytest.mark.row("L13")
def test_a_config_that_is_no_json(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    assert "config.json" in refusal(folder)


def test_what_is_absent_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(MissingError, match=r"config\.json"):
        open_model(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingError, match=r"no model\.safetensors and no pytorch_model\.bin"):
        open_model(folder)
    with pytest.raises(MissingError):
        open_model(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("record.json", b'{"schema": 99}'),
        ("record.json", b'{"schema": 1, "verb": 3, "parents": [[]]}'),
        ("record.json", b"[]"),
        ("tokenizer_config.json", b'{"chat_template": 5'),
        ("generation_config.json", b"nothing"),
        ("chat_template.jinja", b"\xff\xfe"),
        ("chat_template.jinja", b"x" * (1 << 21)),
    ],
)
@pytest.mark.row("L13")
def test_files_beside_the_weights_that_cannot_be(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    refusal(folder)


def test_a_template_among_several(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    several = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert open_model(folder).chat_template == "d"


def test_ends_of_the_generation_config_come_first(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    assert open_model(folder).config.eos_ids == (5, 2, 0)


def test_a_begin_that_the_tokenizer_does_not_add_is_none(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert open_model(folder).config.bos_id is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.row("L9")
def test_weights_that_are_not_finite(folder: Path, tmp_path: Path, value: float) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.norm.weight"][3] = value

    retensor(folder, edit)
    with pytest.warns(UserWarning, match="not finite: norm"):
        model = open_model(folder)
    with pytest.raises(ModelFileError, match=r"not finite: norm\.weight"):
        open_model(folder, strict_finite=True)
    with pytest.raises(ModelFileError, match=r"norm\.weight"):
        write_folder(tmp_path / "copy", model)
    assert not (tmp_path / "copy").exists()


@pytest.mark.row("L9")
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 3.4e38])
def test_weights_that_are_odd_and_finite_load(folder: Path, value: float) -> None:
    retensor(folder, lambda tensors: tensors["model.embed_tokens.weight"].fill(value))
    table = open_model(folder, strict_finite=True).weights["embed.weight"].data.view("<f4")
    assert (table == np.float32(value)).all()


def test_values_too_large_for_float16_are_not_made_infinite(folder: Path, tmp_path: Path) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.norm.weight"][3] = 7e4

    retensor(folder, edit)
    with pytest.raises(ModelFileError, match=r"norm\.weight.*70000"):
        write_folder(tmp_path / "copy", open_model(folder), dtype=DType.F16)


def test_what_no_family_can_say_is_refused_with_every_reason(
    make_model: Make, tmp_path: Path
) -> None:
    model = make_model("qwen3", qk_norm=QkNorm.HEAD, activation=Activation.RELU, mlp_bias=True)
    with pytest.raises(ModelFileError) as caught:
        write_folder(tmp_path / "out", model)
    for part in (
        "llama: this family has no place for layers.0.attn.q_norm.weight",
        "qwen3: mlp_bias is True, such files mean False",
        "olmo2: block is pre, such files mean post",
    ):
        assert part in str(caught.value)
    with pytest.raises(ModelFileError, match="Q8_0"):
        write_folder(tmp_path / "out", make_model(), dtype=DType.Q8_0)
    assert not (tmp_path / "out").exists()


@pytest.mark.row("L29")
def test_every_flipped_bit_of_a_config_is_a_model_or_a_typed_refusal(
    folder: Path, make_model: Make
) -> None:
    path = folder / "config.json"
    content = path.read_bytes()
    opened = 0
    for at in range(0, 8 * len(content), 19):  # 19 is prime: all bits of a byte get their turn
        changed = bytearray(content)
        changed[at // 8] ^= 1 << at % 8
        path.write_bytes(changed)
        try:
            open_model(folder)
            opened += 1
        except MiudoError:
            continue
    assert 0 < opened < len(content)


def test_stories260k_goes_round(shared: Path, tmp_path: Path, assert_same_weights: Same) -> None:
    model = open_model(shared / "data" / "weights" / "stories260k")
    write_folder(tmp_path / "out", model)
    found = open_model(tmp_path / "out")
    assert found.config == model.config
    assert_same_weights(found, model)
