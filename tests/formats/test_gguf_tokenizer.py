"""Tokenizers rebuilt from the keys that other programs write, with the ids of the original."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miudo.config import ModelConfig
from miudo.errors import ModelFileError, TokenizerError
from miudo.formats import ModelFile
from miudo.formats.gguf_reader import Container, read_container
from miudo.formats.gguf_tokenizer import WHOLE_TOKENIZER, read_tokenizer, tokenizer_keys
from miudo.formats.gguf_writer import write_container
from miudo.limits import LIMITS
from miudo.text.pieces import Pieces, piece_tokenizer
from miudo.text.tokenizer import TextTokenizer, train_bpe
from miudo.text.tokenizer_json import TokenizerSpec, check_tokenizer
from miudo.text.word_rules import WORD_RULES, byte_level_tokenizer, word_rule_name

Make = Callable[..., ModelFile]
TRAINED = train_bpe(["Once upon a time, in 1999, there was a café. Don't go!"] * 3, vocab_size=300)
TEXTS = ("Once upon a time", "  new\n\nlines <|end|> 3.14 ação", "DON'T  1999", "日本 e\u0301", "")
ROWS = 320
IDS = "tokenizer.ggml."


def shape(rows: int = ROWS, **ids: Any) -> ModelConfig:
    return ModelConfig.uniform(
        n_layers=1, d_model=32, n_heads=1, d_ff=32, vocab_size=rows, max_positions=8, **ids
    )


def byte_level(name: str) -> TokenizerSpec:
    ids = {token: i for i, token in enumerate(TRAINED.tokens)}
    merges = [" ".join(pair) for pair in TRAINED.spec.merges]
    added = TRAINED.spec.values["added_tokens"]
    return check_tokenizer(byte_level_tokenizer(WORD_RULES[name], ids, merges, added))


def pieces(*, adds_space: bool = True) -> TokenizerSpec:
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    words = ["▁h", "el", "lo", "▁hel", "▁hello", *"▁helo", "<user>"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * 10, 4]
    scores = [0.0] * 259 + [-float(i) for i in range(len(words))]
    return check_tokenizer(
        piece_tokenizer(Pieces([*texts, *words], scores, kinds, adds_space=adds_space))
    )


def container(path: Path, spec: TokenizerSpec, **changes: Any) -> Container:
    """A file with the keys of another program; None takes one out."""
    keys = {"general.architecture": "llama", **tokenizer_keys(spec, shape())}
    keys |= {IDS + k if k != "architecture" else "general." + k: v for k, v in changes.items()}
    with path.open("wb") as file:
        write_container(file, {k: v for k, v in keys.items() if v is not None}, [])
    return read_container(path)


def rebuilt(path: Path, spec: TokenizerSpec, **changes: Any) -> TextTokenizer:
    found = read_tokenizer(container(path, spec, **changes), shape())
    assert found is not None
    return TextTokenizer(found)


@pytest.mark.parametrize("name", WORD_RULES)
def test_a_byte_level_tokenizer_by_the_name_of_its_rule(name: str, tmp_path: Path) -> None:
    original = TextTokenizer(byte_level(name))
    again = rebuilt(tmp_path / "x.gguf", original.spec, pre=name)
    for text in TEXTS:
        assert again.encode(text) == original.encode(text)
        assert again.decode(again.encode(text)) == original.decode(original.encode(text))
    assert again.special_ids == original.special_ids
    assert again.tokens == original.tokens  # rows without a token are not made up
    assert word_rule_name(again.spec.values) == word_rule_name(original.spec.values)


@pytest.mark.parametrize("adds_space", [True, False])
def test_pieces_with_scores(adds_space: bool, tmp_path: Path) -> None:
    original = TextTokenizer(pieces(adds_space=adds_space))
    again = rebuilt(tmp_path / "x.gguf", original.spec)
    for text in (*TEXTS, "hello  hello", "x<user>hello", "</s>"):
        assert again.encode(text) == original.encode(text)
        assert again.decode(again.encode(text)) == text
    assert again.special_ids == original.special_ids
    assert again.added_ids == original.added_ids


def test_phi3_s_tokens_take_white_space_along(tmp_path: Path) -> None:
    found = rebuilt(tmp_path / "x.gguf", pieces(), architecture="phi3")
    hello = found.encode("hello")
    assert found.encode("</s>\n  hello", allow_special=True) == [2, *hello]
    assert found.encode("<s> hello", allow_special=True) == [1, *found.encode(" hello")]


def test_the_end_is_special_whatever_its_type(tmp_path: Path) -> None:
    kinds = [1] * ROWS
    written = container(tmp_path / "x.gguf", TRAINED.spec, token_type=kinds)
    found = read_tokenizer(written, shape(bos_id=1, eos_ids=(0,), pad_id=30))
    assert found is not None
    assert found.special == {"<|end|>": 0, "<|system|>": 1}  # 30 is a letter


def with_last(token: str) -> list[str]:
    """The vocabulary with another last token."""
    n = len(TRAINED.tokens)
    return [*TRAINED.tokens[:-1], token, *[f"[PAD{i}]" for i in range(n, ROWS)]]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown rule": ({"pre": "some-other"}, "pre: is 'some-other'.*gpt-2, phi-2"),
    "the default rule": ({"pre": "default"}, "pre: is 'default'"),
    "our mark": ({"pre": "miudo-unnamed"}, "pre: is 'miudo-unnamed'"),
    "no rule": ({"pre": None}, "pre: is missing"),
    "no merges": ({"merges": None}, "merges: is missing"),
    "no types": ({"token_type": None}, "token_type: is missing"),
    "another kind": ({"model": "t5"}, "model: is 't5'"),
    "no kind": ({"model": None}, "model: is 'None'"),
    "pieces without scores": ({"model": "llama"}, "scores: is missing"),
    "scores that are none": (
        {"model": "llama", "scores": [float("nan")] * ROWS},
        "scores: holds something",
    ),
    "a token twice": (
        {"tokens": with_last("a")},
        "'a' stands twice",
    ),
    "an empty token": (
        {"tokens": with_last("")},
        "is empty",
    ),
    "a merge of three": ({"merges": ["a b c"]}, r"merges\[0\] is no pair"),
}


@pytest.mark.parametrize(("changes", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_rebuilt_is_refused_by_name(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    written = container(tmp_path / "x.gguf", TRAINED.spec, **changes)
    with pytest.raises((ModelFileError, TokenizerError), match=says) as caught:
        read_tokenizer(written, shape())
    assert str(tmp_path / "x.gguf") in str(caught.value)


def test_texts_that_are_too_many_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight million of them would be."""
    file = container(tmp_path / "m", byte_level("gpt-2"), token_type=None)
    limits = dataclasses.replace(LIMITS, vocab_size=3)
    monkeypatch.setattr("miudo.formats.gguf_tokenizer.LIMITS", limits)
    monkeypatch.setattr(Container, "strings", lambda *_: pytest.fail("was read"))
    with pytest.raises(ModelFileError, match=f"{ROWS} tokens, the model 40 rows"):
        read_tokenizer(file, shape(40))
    with pytest.raises(ModelFileError, match=r"merges, allowed 3"):
        read_tokenizer(file, shape())


def test_a_file_that_says_it_has_none(tmp_path: Path) -> None:
    assert (
        read_tokenizer(container(tmp_path / "x.gguf", TRAINED.spec, model="none"), shape()) is None
    )


def test_a_whole_tokenizer_stands_above_what_cannot_be_rebuilt(
    make_model: Make, tmp_path: Path
) -> None:
    spec = dataclasses.replace(TRAINED.spec)
    written = {"general.architecture": "llama", **tokenizer_keys(spec, shape())}
    written |= {IDS + "pre": "some-other", WHOLE_TOKENIZER: spec.to_json().decode()}
    with (tmp_path / "x.gguf").open("wb") as file:
        write_container(file, written, [])
    assert read_tokenizer(read_container(tmp_path / "x.gguf"), shape()) == spec
