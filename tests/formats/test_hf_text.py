"""The text side of folders: tokenizers in all their forms, special tokens, named templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miudo.errors import ModelFileError, TokenizerError
from miudo.formats import ModelFile, open_model
from miudo.formats.gguf import write_gguf
from miudo.formats.hf import write_folder
from miudo.protocol import Message
from miudo.text.prompt import model_template
from miudo.text.tokenizer import TextTokenizer

Make = Callable[..., ModelFile]
VOCAB = {"<e>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "Ġab": 5, "e": 6, "<": 7, ">": 8}
MERGES = "#version: 0.2\na b\nĠ ab\n"


@pytest.fixture
def folder(make_model: Make, tmp_path: Path) -> Path:
    """A folder without a tokenizer."""
    path = tmp_path / "model"
    write_folder(path, make_model())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (path / name).unlink()
    return path


def put(folder: Path, **files: Any) -> None:
    """Writes files; `__` in a name stands for a dot, and what is no text is written as JSON."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")


def tokenizer(folder: Path) -> TextTokenizer:
    spec = open_model(folder).tokenizer
    assert spec is not None
    return TextTokenizer(spec)


def test_a_folder_without_one_has_none(folder: Path) -> None:
    assert open_model(folder).tokenizer is None


def test_vocabulary_and_merges(folder: Path) -> None:
    put(folder, vocab__json=VOCAB, merges__txt=MERGES)
    found = tokenizer(folder)
    assert found.encode("ab ab<e>") == [3, 5, 7, 6, 8]
    # Its id is the model's bos, and that is all that says so.
    assert found.special_ids == {"<e>": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab__json": '{"a":[' + "[]," * (1 << 21) + "[]]}"}, "values"),
        ({"merges__txt": "\n" * ((1 << 21) + 1)}, "merges"),
        ({"tokenizer__json": "[" + "[]," * (1 << 21) + "[]]"}, "values"),
    ],
)
def test_more_than_any_vocabulary_holds(
    changes: dict[str, Any], message: str, folder: Path
) -> None:
    put(folder, **{"vocab__json": VOCAB, "merges__txt": MERGES, **changes})
    with pytest.raises((ModelFileError, TokenizerError), match=f"more than .* {message}"):
        open_model(folder)


def test_the_reader_s_name_says_how_words_are_cut(folder: Path) -> None:
    put(folder, vocab__json=VOCAB, merges__txt=MERGES)
    put(folder, tokenizer_config__json={"tokenizer_class": "Qwen2TokenizerFast"})
    spec = open_model(folder).tokenizer
    assert spec is not None
    assert spec.values["normalizer"] == {"type": "NFC"}


@pytest.mark.parametrize(
    "settings", [{"tokenizer_class": "OddTokenizer"}, {"add_prefix_space": True}]
)
def test_an_unknown_way_to_cut_words_is_refused(folder: Path, settings: dict[str, Any]) -> None:
    put(folder, vocab__json=VOCAB, merges__txt=MERGES, tokenizer_config__json=settings)
    with pytest.raises(TokenizerError, match=r"Put the model's tokenizer\.json"):
        open_model(folder)


def test_special_tokens_of_all_files_come_together(folder: Path) -> None:
    put(
        folder,
        vocab__json=VOCAB,
        merges__txt=MERGES,
        added_tokens__json={"<x>": 9},
        special_tokens_map__json={"pad_token": {"content": "<x>"}},
        tokenizer_config__json={
            "added_tokens_decoder": {"10": {"content": "<think>", "special": False}}
        },
    )
    found = tokenizer(folder)
    assert found.special_ids == {"<e>": 0, "<x>": 9}
    assert found.added_ids == {"<e>": 0, "<x>": 9, "<think>": 10}
    assert found.encode("<think>ab") == [10, 3]


def test_a_written_folder_says_all_of_it_in_one_file(folder: Path, tmp_path: Path) -> None:
    put(folder, vocab__json=VOCAB, merges__txt=MERGES, added_tokens__json={"<x>": 9})
    write_folder(tmp_path / "out", open_model(folder))
    again, first = tokenizer(tmp_path / "out"), tokenizer(folder)
    assert again.added_ids == first.added_ids
    assert again.special_ids == first.special_ids
    assert again.encode("ab ab<x>") == first.encode("ab ab<x>")


def test_a_token_called_bos_that_begins_no_text(folder: Path, tmp_path: Path) -> None:
    put(folder, vocab__json=VOCAB, merges__txt=MERGES)
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<e>", "add_bos_token": False}
    put(folder, tokenizer_config__json=settings)
    write_gguf(tmp_path / "m.gguf", open_model(folder))
    write_folder(tmp_path / "again", open_model(tmp_path / "m.gguf"))
    for path in (folder, tmp_path / "m.gguf", tmp_path / "again"):
        model = open_model(path)
        assert model.config.bos_id is None
        assert model.tokenizer is not None
        template = model_template(TextTokenizer(model.tokenizer), model.config, "{{ bos_token }}")
        assert template.render([Message("user", "x")]) == "<e>"


def test_a_sentencepiece_model(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stories"
    folder.mkdir()
    source = shared / "data" / "weights"
    for path in (source / "stories260k").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    whole = tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes((source / "llama2c" / "tok512.model").read_bytes())
    pieces = tokenizer(folder)
    assert pieces.tokens == whole.tokens
    assert pieces.special_ids == whole.special_ids
    # The file's own switch squeezes spaces, which the tokenizer.json made of it does not.
    for text in ("Once upon a time, there was a girl.", "é\n\n日本 x", "", "The </s> end\t!"):
        assert pieces.encode(text) == whole.encode(text)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"tokenizer__model": "IQ== 0\n"}, "tokenizer.model"),
        ({"vocab__json": {"a": 0, "b": 2}, "merges__txt": ""}, "vocab.json"),
        ({"vocab__json": VOCAB, "merges__txt": "a b c\n"}, "no pair"),
        ({"vocab__json": VOCAB, "merges__txt": "ab\n"}, "no pair"),
        ({"tokenizer__json": "{}"}, "tokenizer.json"),
        ({"vocab__json": VOCAB, "merges__txt": "", "added_tokens__json": {"a": 7}}, "'a' has id 7"),
        ({"vocab__json": VOCAB, "merges__txt": "", "special_tokens_map__json": "x"}, "JSON"),
    ],
)
def test_a_damaged_file_is_refused_by_name(folder: Path, files: dict[str, Any], says: str) -> None:
    put(folder, **files)
    with pytest.raises((TokenizerError, ModelFileError), match=says):
        open_model(folder)


def test_a_merge_of_an_absent_token_is_refused_in_use_and_never_written(
    folder: Path, tmp_path: Path
) -> None:
    put(folder, vocab__json=VOCAB, merges__txt="a e\n")
    model = open_model(folder)
    with pytest.raises(TokenizerError, match=r"model\.merges\[0\] names 'ae'"):
        tokenizer(folder)
    with pytest.raises(TokenizerError, match=r"model\.merges\[0\] names 'ae'"):
        write_folder(tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


NAMED = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
TEMPLATES: dict[str, tuple[dict[str, Any], str | None]] = {
    "none": ({}, None),
    "in tokenizer_config": ({"tokenizer_config__json": {"chat_template": "X"}}, "X"),
    "several": ({"tokenizer_config__json": {"chat_template": NAMED}}, "D"),
    "several without a default": (
        {"tokenizer_config__json": {"chat_template": NAMED[:1]}},
        None,
    ),
    "a file": ({"chat_template__jinja": "J"}, "J"),
    "a file above tokenizer_config": (
        {"tokenizer_config__json": {"chat_template": "X"}, "chat_template__jinja": "J"},
        "J",
    ),
}


@pytest.mark.parametrize(("files", "text"), TEMPLATES.values(), ids=TEMPLATES)
def test_the_chat_template_is_found(folder: Path, files: dict[str, Any], text: str | None) -> None:
    put(folder, **files)
    assert open_model(folder).chat_template == text
