"""GGUF files: the whole model in one file, and back with the same bits."""

from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miudo.config import Activation, ModelConfig
from miudo.errors import ConfigError, ModelFileError, ResourceError, TokenizerError
from miudo.formats import ModelFile, open_model
from miudo.formats.blocks import WRITABLE, to_f32
from miudo.formats.gguf import write_gguf
from miudo.formats.gguf_reader import read_container
from miudo.formats.gguf_tokenizer import tokenizer_keys
from miudo.formats.gguf_writer import write_container
from miudo.formats.hf import write_folder
from miudo.tensors import DType, StoredTensor
from miudo.text.tokenizer_json import parse_tokenizer_json

Make = Callable[..., ModelFile]
Same = Callable[[ModelFile, ModelFile], None]
Tokenizer = Callable[..., bytes]

# As `gguf.LlamaFileType` numbers them.
FILE_TYPES = {
    DType.F32: 0, DType.F16: 1, DType.BF16: 32, DType.Q4_0: 2, DType.Q4_1: 3, DType.Q5_0: 8,
    DType.Q5_1: 9, DType.Q8_0: 7, DType.Q2_K: 10, DType.Q3_K: 11, DType.Q4_K: 14, DType.Q5_K: 16,
    DType.Q6_K: 18, DType.IQ4_NL: 25, DType.IQ4_XS: 30, DType.TQ1_0: 36, DType.TQ2_0: 37,
}  # fmt: skip


def keys_of(path: Path) -> dict[str, Any]:
    return dict(read_container(path).keys)


def rewritten(path: Path, model: ModelFile, **changes: Any) -> Path:
    """Writes `model`, then again with other keys; None takes a key out."""
    write_gguf(path, model)
    container = read_container(path)
    keys: dict[str, Any] = {}
    for key, value in container.keys.items():
        if isinstance(value, str | int | float | bool):
            keys[key] = value
        elif value.kind == 8:
            keys[key] = container.strings(key)
        else:
            keys[key] = container.numbers(key, {5, 6}).tolist()
    for key, value in changes.items():
        keys[key.replace("__", ".")] = value
    other = path.with_name("changed.gguf")
    tensors = list(container.tensors.items())
    with other.open("wb") as file:
        write_container(file, {k: v for k, v in keys.items() if v is not None}, tensors)
    return other


def test_a_file_holds_the_whole_model(
    any_model: ModelFile, tmp_path: Path, assert_same_weights: Same
) -> None:
    report = write_gguf(tmp_path / "m.gguf", any_model)
    assert report.architecture == any_model.architecture.partition("-")[0]
    found = open_model(tmp_path / "m.gguf")
    for field in ("config", "tokenizer", "chat_template", "record"):
        assert getattr(found, field) == getattr(any_model, field), field
    assert_same_weights(found, any_model)


def test_folder_to_file_to_folder_gives_the_same_bytes(
    any_model: ModelFile, tmp_path: Path
) -> None:
    write_folder(tmp_path / "one", any_model)
    write_gguf(tmp_path / "m.gguf", open_model(tmp_path / "one"))
    write_folder(tmp_path / "two", open_model(tmp_path / "m.gguf"))
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        one, two = (tmp_path / n / name for n in ("one", "two"))
        assert one.read_bytes() == two.read_bytes(), name


def test_llama_rows_are_paired_and_others_are_not(make_model: Make, tmp_path: Path) -> None:
    """Row 1 of a head of 8 is the partner of row 0, which lies 4 rows on in folders."""
    for name, second in (("llama", 4), ("qwen2", 1)):
        model = make_model(name)
        write_gguf(tmp_path / "m.gguf", model)
        stored = to_f32(read_container(tmp_path / "m.gguf").tensors["blk.0.attn_q.weight"])
        rows = to_f32(model.weights["layers.0.attn.q.weight"])
        np.testing.assert_array_equal(stored[0], rows[0])
        np.testing.assert_array_equal(stored[1], rows[second])


@pytest.mark.parametrize("dtype", WRITABLE)
def test_types_and_the_report(make_model: Make, tmp_path: Path, dtype: DType) -> None:
    model = make_model("gpt2", d_model=256, d_ff=256)
    report = write_gguf(tmp_path / "m.gguf", model, dtype=dtype)
    found = open_model(tmp_path / "m.gguf")
    assert report.dtypes == {name: t.dtype for name, t in found.weights.items()}
    assert report.dtypes["norm.weight"] is report.dtypes["layers.0.attn.q.bias"] is DType.F32
    assert report.dtypes["layers.0.mlp.up.weight"] is dtype
    # A table of positions is read one row at a time; it tolerates no less than F16.
    assert report.fallbacks == (("position.weight",) if dtype.block > 1 else ())
    number = read_container(tmp_path / "m.gguf").keys["general.file_type"]
    assert number == FILE_TYPES[dtype]
    assert report.size_bytes == (tmp_path / "m.gguf").stat().st_size
    stored = sum(t.data.size for t in found.weights.values())
    values = sum(np.prod(t.shape) for t in found.weights.values())
    assert report.bits_per_weight == pytest.approx(8 * stored / values)


@pytest.mark.parametrize(
    ("dtype", "d_ff", "becomes"),
    [
        (DType.Q4_K, 64, DType.Q5_0), (DType.Q6_K, 64, DType.Q8_0), (DType.Q4_0, 65, DType.F16),
        (DType.Q2_K, 64, DType.IQ4_NL), (DType.Q3_K, 64, DType.IQ4_NL),
        (DType.Q5_K, 64, DType.Q5_1), (DType.IQ4_XS, 64, DType.IQ4_NL),
        (DType.TQ1_0, 64, DType.Q4_0), (DType.TQ2_0, 64, DType.Q4_0),
        (DType.Q4_K, 65, DType.F16), (DType.Q6_K, 65, DType.F16),
    ],
)  # fmt: skip
def test_rows_that_fit_no_blocks_get_the_next_larger_type(
    make_model: Make, tmp_path: Path, dtype: DType, d_ff: int, becomes: DType
) -> None:
    model = make_model(d_model=256, d_ff=d_ff)
    report = write_gguf(tmp_path / "m.gguf", model, dtype=dtype)
    assert report.fallbacks == tuple(f"layers.{i}.mlp.down.weight" for i in range(2))
    assert {report.dtypes[name] for name in report.fallbacks} == {becomes}
    assert read_container(tmp_path / "m.gguf").keys["general.file_type"] == FILE_TYPES[dtype]


def test_a_file_is_called_after_what_most_of_it_is(make_model: Make, tmp_path: Path) -> None:
    report = write_gguf(tmp_path / "m.gguf", make_model(), dtype=DType.Q4_K)
    assert set(report.dtypes.values()) == {DType.Q5_0, DType.F32}
    keys = read_container(tmp_path / "m.gguf").keys
    assert keys["general.file_type"] == FILE_TYPES[DType.Q5_0]


def test_types_that_are_only_read_are_refused_and_kept(make_model: Make, tmp_path: Path) -> None:
    """A file of another program keeps its types when it is written again."""
    model = make_model("llama-untied", d_model=256, d_ff=256)
    rng = np.random.default_rng(3)
    for dtype in sorted(t for t in set(DType) - set(WRITABLE) if not t.sparse):
        with pytest.raises(ConfigError, match=f"{dtype} is only read"):
            write_gguf(tmp_path / "m.gguf", model, dtype=dtype)
        weights = dict(model.weights)
        for name, tensor in model.weights.items():
            if len(tensor.shape) == 2:
                data = rng.integers(0, 60, dtype.size_bytes(tensor.shape), dtype=np.uint8)
                weights[name] = StoredTensor(dtype, tensor.shape, data)
        theirs = dataclasses.replace(model, weights=weights)
        report = write_gguf(tmp_path / f"{dtype}.gguf", theirs)
        assert report.fallbacks == ()
        found = open_model(tmp_path / f"{dtype}.gguf")
        for name, tensor in weights.items():
            assert found.weights[name].dtype is tensor.dtype
            np.testing.assert_array_equal(found.weights[name].data, tensor.data, err_msg=name)


def test_rows_that_are_no_whole_blocks_stay_f16(make_model: Make, tmp_path: Path) -> None:
    model = make_model(d_ff=172)
    report = write_gguf(tmp_path / "m.gguf", model, dtype=DType.Q8_0)
    assert report.fallbacks == tuple(f"layers.{i}.mlp.down.weight" for i in range(2))
    assert {report.dtypes[name] for name in report.fallbacks} == {DType.F16}


@pytest.mark.parametrize("dtype", [DType.Q8_0, DType.F16])
def test_values_beyond_float16_stay_f32(make_model: Make, tmp_path: Path, dtype: DType) -> None:
    # 127 float16 scales reach 1e6, but nothing of the rest of such a block would be left.
    model, name = make_model(), "layers.1.mlp.up.weight"
    values = to_f32(model.weights[name]).copy()
    values[3, 4] = -1e6
    weights = {**model.weights, name: StoredTensor.from_f32(values)}
    model = dataclasses.replace(model, weights=weights)
    report = write_gguf(tmp_path / "m.gguf", model, dtype=dtype)
    assert report.fallbacks == (name,)
    assert report.dtypes[name] is DType.F32
    np.testing.assert_array_equal(to_f32(open_model(tmp_path / "m.gguf").weights[name]), values)


def test_large_eight_bit_values_are_kept_as_they_are_and_never_made_infinite(
    make_model: Make, tmp_path: Path, assert_same_weights: Same
) -> None:
    model = make_model()
    write_gguf(tmp_path / "one.gguf", model, dtype=DType.Q8_0)
    first = open_model(tmp_path / "one.gguf")
    name = "layers.1.mlp.up.weight"
    data = first.weights[name].data.copy()
    data[:2] = np.array([1000], dtype="<f2").view(np.uint8)  # a scale: values up to 127,000
    weights = {**first.weights, name: dataclasses.replace(first.weights[name], data=data)}
    first = dataclasses.replace(first, weights=weights)
    write_gguf(tmp_path / "two.gguf", first)
    assert_same_weights(open_model(tmp_path / "two.gguf"), first)
    report = write_gguf(tmp_path / "three.gguf", first, dtype=DType.F16)
    assert report.dtypes[name] is DType.F32
    with pytest.raises(ModelFileError, match="up"):
        write_folder(tmp_path / "folder", first, dtype=DType.F16)


def test_eight_bits_go_through_unchanged(
    make_model: Make, tmp_path: Path, assert_same_weights: Same
) -> None:
    write_gguf(tmp_path / "one.gguf", make_model("llama-biases"), dtype=DType.Q8_0)
    first = open_model(tmp_path / "one.gguf")
    write_gguf(tmp_path / "two.gguf", first)
    assert_same_weights(open_model(tmp_path / "two.gguf"), first)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_unequal_widths_are_padded(unequal_model: ModelFile, tmp_path: Path) -> None:
    report = write_gguf(tmp_path / "m.gguf", unequal_model)
    assert report.notes == ("1 layers padded with zeros to d_ff 64",)
    found = open_model(tmp_path / "m.gguf")
    assert [layer.d_ff for layer in found.config.layers] == [64, 64]
    up = to_f32(found.weights["layers.1.mlp.up.weight"])
    np.testing.assert_array_equal(up[:33], to_f32(unequal_model.weights["layers.1.mlp.up.weight"]))
    assert not up[33:].any()


def test_padding_of_8_bit_tensors_keeps_their_blocks(make_model: Make, tmp_path: Path) -> None:
    """Blocks of zeros are added; a width of 100 is rounded up so that no block is cut."""
    whole = make_model()
    write_gguf(tmp_path / "q.gguf", whole, dtype=DType.Q8_0)
    stored = open_model(tmp_path / "q.gguf")
    layers = tuple(
        dataclasses.replace(layer, d_ff=w)
        for layer, w in zip(stored.config.layers, (64, 100), strict=True)
    )
    weights = dict(stored.weights)
    for part, shape in (("gate", (100, 32)), ("up", (100, 32)), ("down", (32, 100))):
        name = f"layers.1.mlp.{part}.weight"
        weights[name] = StoredTensor.from_f32(np.ones(shape, dtype="<f4"))
    config = dataclasses.replace(stored.config, layers=layers)
    write_gguf(tmp_path / "m.gguf", dataclasses.replace(stored, config=config, weights=weights))
    found = open_model(tmp_path / "m.gguf")
    assert [layer.d_ff for layer in found.config.layers] == [128, 128]
    down = to_f32(found.weights["layers.0.mlp.down.weight"])
    np.testing.assert_array_equal(down[:, :64], to_f32(weights["layers.0.mlp.down.weight"]))
    assert not down[:, 64:].any()


OWN: dict[str, dict[str, Any]] = {
    "another activation": {"activation": Activation.RELU},
    "a window": {"window": 8},
    "an output bias alone": {"o_bias": True},
}


@pytest.mark.parametrize("changes", OWN.values(), ids=OWN)
def test_what_no_program_knows_is_written_under_our_name(
    make_model: Make, tmp_path: Path, changes: dict[str, Any], assert_same_weights: Same
) -> None:
    model = make_model(**changes)
    assert write_gguf(tmp_path / "m.gguf", model).architecture == "miudo"
    found = open_model(tmp_path / "m.gguf")
    assert found.config == model.config
    assert_same_weights(found, model)


def test_layers_that_differ_in_heads_are_written_under_our_name(
    make_model: Make, tmp_path: Path
) -> None:
    model = make_model()
    layers = (model.config.layers[0], dataclasses.replace(model.config.layers[1], rotary=False))
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, layers=layers))
    assert write_gguf(tmp_path / "m.gguf", model).architecture == "miudo"
    assert open_model(tmp_path / "m.gguf").config == model.config


def test_keys_that_other_programs_read(make_model: Make, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", make_model(), dtype=DType.Q8_0, languages=("en", "pt"))
    keys = keys_of(tmp_path / "m.gguf")
    wanted = {
        "general.architecture": "llama", "general.name": "tiny", "general.license": "CC0-1.0",
        "general.file_type": 7, "general.quantization_version": 2, "miudo.schema": 1,
        "llama.block_count": 2, "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 8, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.ggml.padding_token_id": 1, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }  # fmt: skip
    assert {key: keys.get(key) for key in wanted} == wanted
    container = read_container(tmp_path / "m.gguf")
    tokens = container.strings("tokenizer.ggml.tokens")
    types = container.numbers("tokenizer.ggml.token_type", {5}).tolist()
    assert tokens[:4] == ["<|end|>", "<|pad|>", "</s>", "a"]
    assert tokens[-1] == "[PAD39]"
    assert types == [3] * 3 + [1] * 12 + [5] * 25
    assert container.strings("tokenizer.ggml.merges") == ["a b", "Ġ a", "Ġ ab"]
    assert container.strings("general.languages") == ["en", "pt"]


def test_more_ends_than_the_format_has_names_for(make_model: Make, tmp_path: Path) -> None:
    model = make_model(eos_ids=(5, 3, 9, 1))
    write_gguf(tmp_path / "m.gguf", model)
    assert open_model(tmp_path / "m.gguf").config.eos_ids == (5, 3, 9, 1)


RULES: dict[str, tuple[Any, str]] = {
    "GPT-2": ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, "gpt-2"),
    "a space in front": (
        {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
        "miudo-unnamed",
    ),
    "digits apart": (
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
        },
        "smollm",
    ),
    "none": (None, "miudo-unnamed"),
    "another": ({"type": "Whitespace"}, "miudo-unnamed"),
}


@pytest.mark.parametrize(("rule", "name"), RULES.values(), ids=RULES)
def test_words_are_cut_by_a_named_rule_or_the_file_is_marked(
    make_model: Make, make_tokenizer: Tokenizer, rule: Any, name: str
) -> None:
    keys = tokenizer_keys(
        parse_tokenizer_json(make_tokenizer(pre_tokenizer=rule)), make_model().config
    )
    assert keys["tokenizer.ggml.pre"] == name


def test_pieces_with_byte_fallback(shared: Path, tmp_path: Path) -> None:
    model = open_model(shared / "data" / "weights" / "stories260k")
    write_gguf(tmp_path / "m.gguf", model)
    container = read_container(tmp_path / "m.gguf")
    tokens = container.strings("tokenizer.ggml.tokens")
    types = container.numbers("tokenizer.ggml.token_type", {5}).tolist()
    scores = container.numbers("tokenizer.ggml.scores", {6}).tolist()
    assert container.keys["tokenizer.ggml.model"] == "llama"
    assert container.keys["tokenizer.ggml.add_space_prefix"] is True
    assert types[:4] == [2, 3, 3, 6]  # <unk>, <s>, </s>, <0x00>
    assert types[tokens.index("▁the")] == 1
    # In tokenizer.json "▁ t" is the first merge, "h e" the second.
    assert [scores[tokens.index(t)] for t in ("▁t", "he")] == [0, -1]


def test_a_file_without_the_whole_tokenizer_has_a_rebuilt_one(
    make_model: Make, tmp_path: Path
) -> None:
    model = make_model()
    path = rewritten(tmp_path / "m.gguf", model, tokenizer__huggingface__json=None)
    found = open_model(path).tokenizer
    assert found is not None
    assert model.tokenizer is not None
    assert found.tokens == model.tokenizer.tokens
    assert found.merges == model.tokenizer.merges
    assert found.special == model.tokenizer.special


DISAGREEMENTS: dict[str, tuple[str, Any, str]] = {
    "a token": ("tokens", lambda old: [*old[:5], "zz", *old[6:]], "id 5"),
    "a token too many": ("tokens", lambda old: [*old[:-1], "zz"], "id 39"),
    "merges": ("merges", lambda old: old[::-1], "merges"),
    "number of tokens": ("tokens", lambda old: old[:-1], "39 tokens"),
    "scores as bytes": ("scores", lambda _: [1] * 40, "type 6"),
    "scores too few": ("scores", lambda _: [0.5] * 39, "40 values"),
    "types too few": ("token_type", lambda old: old[:-1], "40 values"),
    "types as text": ("token_type", lambda _: "x", "40 values"),
}


@pytest.mark.parametrize(("key", "edit", "word"), DISAGREEMENTS.values(), ids=DISAGREEMENTS)
@pytest.mark.row("L26")
def test_two_tokenizers_that_disagree(
    make_model: Make, tmp_path: Path, key: str, edit: Any, word: str
) -> None:
    model = make_model()
    write_gguf(tmp_path / "m.gguf", model)
    container, name = read_container(tmp_path / "m.gguf"), f"tokenizer.ggml.{key}"
    if key in ("tokens", "merges"):
        old: Any = container.strings(name)
    else:
        old = container.numbers(name, {5}).tolist() if name in container.keys else None
    path = rewritten(tmp_path / "m.gguf", model, **{name: edit(old)})
    with pytest.raises(ModelFileError, match=word):
        open_model(path)


KEYS: dict[str, tuple[str, Any, str]] = {
    "no architecture": ("general.architecture", None, "general.architecture"),
    "another architecture": ("general.architecture", "gemma2", "gemma2"),
    "architecture of a number": ("general.architecture", 3, "no text"),
    "a missing key": ("llama.block_count", None, "llama.block_count"),
    "experts": ("llama.expert_count", 8, "llama.expert_count = 8"),
    "scaled rotation": ("llama.rope.scaling.type", "spiral", "scaling"),
    "a factor on all rotations": ("llama.rope.scaling.attn_factor", 1.5, "attn_factor is 1.5"),
    "a window": ("llama.attention.sliding_window", 128, "sliding_window"),
    "part of a head turned": ("llama.rope.dimension_count", 4, "dimension_count"),
    "values of another size": ("llama.attention.value_length", 4, "value_length"),
    "absurd layers": ("llama.block_count", 10**9, "n_layers"),
    "no heads": ("llama.attention.head_count", 0, "no model"),
    "heads as text": ("llama.attention.head_count", "4", "no model"),
    "heads by layer": ("llama.attention.head_count", [4, 4], "no model"),
    "epsilon as text": ("llama.attention.layer_norm_rms_epsilon", "x", "no model"),
    "other sizes than the tensors": ("llama.feed_forward_length", 65, r"\[65, 32\]"),
    "an end outside": ("tokenizer.ggml.eos_token_id", 40, "eos_ids"),
    "ends as numbers": ("miudo.eos_ids", [1.5], "miudo.eos_ids"),
    "a template of a number": ("tokenizer.chat_template", 3, "chat_template"),
    "a record that is none": ("miudo.record", "{}", "schema"),
    "a record of no JSON": ("miudo.record", "x", "JSON"),
    "a tokenizer of no JSON": ("tokenizer.huggingface.json", "x", "JSON"),
    "a tokenizer of no vocabulary": ("tokenizer.huggingface.json", "{}", "model is missing"),
}


@pytest.mark.parametrize(("key", "value", "word"), KEYS.values(), ids=KEYS)
@pytest.mark.row("L22")
def test_keys_that_cannot_be(
    make_model: Make, tmp_path: Path, key: str, value: Any, word: str
) -> None:
    path = rewritten(tmp_path / "m.gguf", make_model(), **{key: value})
    with pytest.raises((ModelFileError, TokenizerError), match=word) as caught:
        open_model(path)
    assert str(path) in str(caught.value)


def test_our_own_architecture_needs_its_config(make_model: Make, tmp_path: Path) -> None:
    model = make_model(window=4)
    for text in (None, "x", "{}", json.dumps(model.config.to_json() | {"surprise": 1})):
        path = rewritten(tmp_path / "m.gguf", model, miudo__config=text)
        with pytest.raises(ModelFileError, match=r"miudo\.config"):
            open_model(path)


@pytest.mark.row("L12")
def test_tensors_that_are_missing_or_unknown_are_all_named(
    make_model: Make, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", make_model())
    container = read_container(tmp_path / "m.gguf")
    tensors = dict(container.tensors)
    del tensors["output_norm.weight"]
    # Attention has it beside its weights: to ignore it would be to compute something else.
    tensors["blk.0.attn_sinks.weight"] = StoredTensor.from_f32(np.ones(4, dtype="<f4"))
    keys = {k: v for k, v in container.keys.items() if isinstance(v, str | int | float)}
    with (tmp_path / "x.gguf").open("wb") as file:
        write_container(file, keys, list(tensors.items()))
    with pytest.raises(ModelFileError) as caught:
        open_model(tmp_path / "x.gguf")
    assert "output_norm.weight is missing; blk.0.attn_sinks.weight is unknown" in str(caught.value)


@pytest.mark.parametrize("name", ["output_norm.weight", "blk.0.attn_q.bias"])
def test_a_vector_of_blocks_is_refused(make_model: Make, tmp_path: Path, name: str) -> None:
    model = make_model("llama-biases")
    write_gguf(tmp_path / "m.gguf", model)
    container = read_container(tmp_path / "m.gguf")
    tensors = dict(container.tensors)
    shape = tensors[name].shape
    data = np.zeros(DType.Q8_0.size_bytes(shape), dtype=np.uint8)
    tensors[name] = StoredTensor(DType.Q8_0, shape, data)
    keys = {k: v for k, v in container.keys.items() if isinstance(v, str | int | float)}
    with (tmp_path / "x.gguf").open("wb") as file:
        write_container(file, keys, list(tensors.items()))
    with pytest.raises(ModelFileError, match=f"{name} is a vector of Q8_0"):
        open_model(tmp_path / "x.gguf")


@pytest.mark.row("L27")
def test_a_model_that_cannot_be_written_leaves_no_file(make_model: Make, tmp_path: Path) -> None:
    model = make_model()
    bad = np.ones(32, dtype="<f4")
    bad[3] = np.nan
    weights = {**model.weights, "norm.weight": StoredTensor.from_f32(bad)}
    broken = dataclasses.replace(model, weights=weights)
    small = dataclasses.replace(model, config=ModelConfig.uniform(
        n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=10, max_positions=24
    ))  # fmt: skip
    for unwritable in (broken, small):
        with pytest.raises(ModelFileError):
            write_gguf(tmp_path / "m.gguf", unwritable, dtype=DType.Q8_0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.row("L27")
def test_a_tokenizer_larger_than_the_model(
    make_model: Make, make_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    vocab = {f"w{i}": i for i in range(41)}
    data = make_tokenizer(model={"type": "BPE", "vocab": vocab, "merges": []}, added_tokens=[])
    with pytest.raises(ModelFileError, match="id 40, the model 40 rows"):
        write_gguf(
            tmp_path / "m.gguf",
            dataclasses.replace(make_model(), tokenizer=parse_tokenizer_json(data)),
        )


BROKEN: dict[str, dict[str, Any]] = {
    "no model": {"model": None},
    "a vocabulary with a gap": {"model": {"type": "BPE", "vocab": {"a": 0, "b": 2}}},
    "merges of numbers": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [1, 2]}},
    "an unknown token of a list": {"model": {"type": "BPE", "vocab": {"a": 0}, "unk_token": []}},
    "a vocabulary of a list": {"model": {"type": "BPE", "vocab": [["a", 0]]}},
    "pieces with probabilities": {"model": {"type": "Unigram", "vocab": [["a", 0.5]]}},
    "added tokens of text": {"added_tokens": "x"},
    "an added token without an id": {"added_tokens": [{"content": "x"}]},
    "no decoder": {"decoder": None},
}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN)
@pytest.mark.row("L27")
def test_a_broken_tokenizer_is_refused_and_nothing_is_written(
    make_model: Make, make_tokenizer: Tokenizer, tmp_path: Path, changes: dict[str, Any]
) -> None:
    if "model" in changes:
        changes = {"added_tokens": []} | changes
    model = make_model()
    with pytest.raises((ModelFileError, TokenizerError)):  # noqa: PT012 - either may refuse it
        tokenizer = parse_tokenizer_json(make_tokenizer(**changes))
        write_gguf(tmp_path / "m.gguf", dataclasses.replace(model, tokenizer=tokenizer))
    assert list(tmp_path.iterdir()) == []
    for value in (json.dumps(json.loads(make_tokenizer(**changes))), "[]"):
        path = rewritten(tmp_path / "m.gguf", make_model(), **{"tokenizer.huggingface.json": value})
        if "decoder" not in changes or value == "[]":  # its vocabulary is the same
            with pytest.raises((ModelFileError, TokenizerError)):
                open_model(path)


def test_no_space_left_leaves_no_file(make_model: Make, tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ResourceError):
            write_gguf(tmp_path / "m.gguf", make_model())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert list(tmp_path.iterdir()) == []


def test_other_content_is_named_for_what_it_is(tmp_path: Path) -> None:
    for content, word in ((b"PK\x03\x04", "zip"), (b"\x80\x04\x95", "pickle"), (b"", "no model")):
        (tmp_path / "model.gguf").write_bytes(content)
        with pytest.raises(ModelFileError, match=word):
            open_model(tmp_path / "model.gguf")
