"""Files that no tokenizer can be made of: each is refused by name, before the library sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from miudo.errors import TokenizerError
from miudo.limits import Limits
from miudo.text.tokenizer import TextTokenizer, train_bpe
from miudo.text.tokenizer_json import parse_tokenizer_json

GOOD = train_bpe(["the cat sat on the mat"] * 9, vocab_size=280).to_json()
SMALL = Limits(vocab_size=100, token_bytes=64, json_bytes=1 << 20)


def vocab(values: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = values["model"]["vocab"]
    return found


def duplicate_id(values: dict[str, Any]) -> None:
    vocab(values)["twice"] = 7


def gap(values: dict[str, Any]) -> None:
    vocab(values)["far"] = len(vocab(values)) + 1


def negative(values: dict[str, Any]) -> None:
    vocab(values)["below"] = -1


def huge(values: dict[str, Any]) -> None:
    vocab(values)["huge"] = 1 << 40


def boolean(values: dict[str, Any]) -> None:
    del vocab(values)["<|system|>"]
    vocab(values)["<|system|>"] = True
    values["added_tokens"][1]["id"] = True


def fraction(values: dict[str, Any]) -> None:
    vocab(values)["half"] = 0.5  # type: ignore[assignment]


def empty_token(values: dict[str, Any]) -> None:
    vocab(values)[""] = len(vocab(values))


def surrogate(values: dict[str, Any]) -> None:
    vocab(values)["\ud800"] = len(vocab(values))


def long_token(values: dict[str, Any]) -> None:
    vocab(values)["x" * 70000] = len(vocab(values))


def missing_merge(values: dict[str, Any]) -> None:
    values["model"]["merges"].append(["nowhere", "t"])


def missing_result(values: dict[str, Any]) -> None:
    values["model"]["merges"].append(["z", "q"])


def merge_of_three(values: dict[str, Any]) -> None:
    values["model"]["merges"].append("a b c")


def no_merges(values: dict[str, Any]) -> None:
    del values["model"]["merges"]


def no_model(values: dict[str, Any]) -> None:
    del values["model"]


def word_piece(values: dict[str, Any]) -> None:
    values["model"]["type"] = "WordPiece"


def no_decoder(values: dict[str, Any]) -> None:
    values["decoder"] = None


def foreign_decoder(values: dict[str, Any]) -> None:
    values["decoder"] = {"type": "CTC"}


def added_twice(values: dict[str, Any]) -> None:
    values["added_tokens"].append(values["added_tokens"][0])


def added_elsewhere(values: dict[str, Any]) -> None:
    values["added_tokens"][0]["id"] = 9


def added_without_content(values: dict[str, Any]) -> None:
    del values["added_tokens"][0]["content"]


def added_no_list(values: dict[str, Any]) -> None:
    values["added_tokens"] = {"a": 1}


def long_pattern(values: dict[str, Any]) -> None:
    values["normalizer"] = {
        "type": "Replace",
        "pattern": {"Regex": "a" * 9000},
        "content": "",
    }


def deep_normalizer(values: dict[str, Any]) -> None:
    part: dict[str, Any] = {"type": "NFC"}
    for _ in range(60):
        part = {"type": "Sequence", "normalizers": [part]}
    values["normalizer"] = part


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (duplicate_id, "id 7"),
        (gap, "without a gap"),
        (negative, "-1"),
        (huge, "1099511627776"),
        (boolean, "True"),
        (fraction, "0.5"),
        (empty_token, "empty"),
        (surrogate, "Unicode"),
        (long_token, "70000 bytes"),
        (missing_merge, "nowhere"),
        (missing_result, "zq"),
        (merge_of_three, "pair"),
        (no_merges, "merges"),
        (no_model, "model"),
        (word_piece, "WordPiece"),
        (no_decoder, "decoder"),
        (foreign_decoder, "CTC"),
        (added_twice, "twice"),
        (added_elsewhere, "9"),
        (added_without_content, "content"),
        (added_no_list, "added_tokens"),
        (long_pattern, "9000"),
        (deep_normalizer, "normalizer"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
@pytest.mark.row("J1")
def test_a_damaged_file_is_refused_by_name(
    damage: Callable[[dict[str, Any]], None], says: str
) -> None:
    values = json.loads(GOOD)
    damage(values)
    with pytest.raises(TokenizerError, match=r"here\.json") as caught:
        TextTokenizer.from_json(json.dumps(values).encode(), where="here.json")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"{", b"[]", b"null", b"[" * 100_000, b'{"model": {"a": 1, "a": 2}}'],
)
@pytest.mark.row("J1")
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(TokenizerError):
        TextTokenizer.from_json(data, where="x")


@pytest.mark.row("J2")
def test_limits_hold() -> None:
    with pytest.raises(TokenizerError, match="tokens, allowed 1 to 100"):
        parse_tokenizer_json(GOOD, limits=SMALL)
    with pytest.raises(TokenizerError, match="bytes"):
        parse_tokenizer_json(b" " * (2 << 20), limits=SMALL)


def test_what_the_library_alone_refuses_is_a_tokenizer_error() -> None:
    values = json.loads(GOOD)
    values["pre_tokenizer"] = {"type": "NoSuchThing"}
    with pytest.raises(TokenizerError, match="tokenizers library"):
        TextTokenizer.from_json(json.dumps(values).encode())


@pytest.mark.row("J1")
def test_unigram_files_are_checked_too() -> None:
    pieces = [["<unk>", 0.0], ["▁a", -1.0], ["b", -2.0]]
    values = {
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "added_tokens": [],
    }
    tokenizer = TextTokenizer.from_json(json.dumps(values).encode())
    assert tokenizer.encode("ab") == [1, 2]
    assert tokenizer.decode([1, 2]) == "ab"
    for bad in (["c"], ["c", "x"], [1, 2.0], ["b", -1.0]):
        values["model"]["vocab"] = [*pieces, bad]  # type: ignore[index]
        with pytest.raises(TokenizerError, match=r"model\.vocab"):
            TextTokenizer.from_json(json.dumps(values).encode())
