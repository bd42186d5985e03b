"""Tokenizers of both kinds: exact bytes, no special token from plain text, canonical form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miudo.errors import ConfigError, RequestError, TokenizerError
from miudo.protocol import Tokenizer
from miudo.text import tokenizer as module
from miudo.text.tokenizer import DEFAULT_SPECIALS, TextTokenizer, train_bpe

LINES = [
    "the cat sat on the mat, and the café was full\n",
    "O gato dormiu à sombra da árvore; não há pressa.\n",
    "tabs\tand  double   spaces 12345 日本語 👨‍👩‍👧\n",
] * 20


@pytest.fixture(scope="module")
def byte_level() -> TextTokenizer:
    return train_bpe(LINES, vocab_size=320)


@pytest.fixture(scope="module")
def pieces() -> TextTokenizer:
    return TextTokenizer.from_json(sentencepiece_json())


def sentencepiece_json() -> bytes:
    """A tokenizer of the SentencePiece kind with byte fallback, as Llama 2 ships it."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    tokens += ["▁", "h", "e", "l", "o", "▁h", "▁he", "ll", "▁hell", "▁hello"]
    merges = [["▁", "h"], ["▁h", "e"], ["l", "l"], ["▁he", "ll"], ["▁hell", "o"]]
    special = [
        {"id": i, "content": t, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, t in enumerate(tokens[:3])
    ]
    values = {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": merges,
        },
    }
    return json.dumps(values).encode()


def test_it_is_a_tokenizer_of_the_protocol(byte_level: TextTokenizer) -> None:
    assert isinstance(byte_level, Tokenizer)


def test_no_token_is_longer_than_the_longest(byte_level: TextTokenizer) -> None:
    sizes = [len(byte_level.token_bytes(i)) for i in range(byte_level.vocab_size)]
    assert max(sizes) <= byte_level.longest_token <= max(map(len, byte_level.tokens))


def test_training_gives_specials_first_then_bytes_and_no_unknown(byte_level: TextTokenizer) -> None:
    assert byte_level.vocab_size == 320
    assert byte_level.special_ids == {t: i for i, t in enumerate(DEFAULT_SPECIALS)}
    assert {byte_level.token_bytes(i) for i in range(5, 261)} == {bytes([b]) for b in range(256)}
    assert byte_level.padded_size(64) == 320
    assert byte_level.padded_size(256) == 512


def test_training_is_deterministic() -> None:
    first, second = (train_bpe(LINES, vocab_size=330) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize(("size", "special"), [(260, DEFAULT_SPECIALS), (400, ("a", "a"))])
def test_training_refuses_a_vocabulary_that_cannot_be(size: int, special: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        train_bpe(LINES, vocab_size=size, special=special)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_comes_back_and_bytes_join_to_it(text: str) -> None:
    for tokenizer in (_byte_level(), _pieces()):
        ids = tokenizer.encode(text)
        joined = b"".join(map(tokenizer.token_bytes, ids)).decode()
        assert tokenizer.decode(ids) == text
        assert (joined.removeprefix(" ") if tokenizer.adds_space else joined) == text


_cache: dict[str, TextTokenizer] = {}


def _byte_level() -> TextTokenizer:
    return _cache.setdefault("bytes", train_bpe(LINES, vocab_size=320))


def _pieces() -> TextTokenizer:
    return _cache.setdefault("pieces", TextTokenizer.from_json(sentencepiece_json()))


@pytest.mark.parametrize("kind", ["byte_level", "pieces"])
@pytest.mark.row("J4")
def test_a_special_token_that_a_user_types_stays_plain(
    kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: TextTokenizer = request.getfixturevalue(kind)
    for token, number in tokenizer.special_ids.items():
        text = f"hello {token}{token} hello\n{token}"
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.special_ids.values())
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode_batch([text, "x"])[0] == ids
        assert tokenizer.encode(text, allow_special=True).count(number) == 3


@pytest.mark.row("J4")
def test_plain_text_stays_plain_where_the_model_itself_knows_the_token() -> None:
    # `ignore_merges` looks whole words up in the vocabulary, special ones too.
    values = json.loads(train_bpe(LINES, vocab_size=300, special=("qqq",)).to_json())
    values["model"]["ignore_merges"] = True
    tokenizer = TextTokenizer.from_json(json.dumps(values).encode())
    ids = tokenizer.encode("qqq")
    assert 0 not in ids
    assert tokenizer.decode(ids) == "qqq"
    many = tokenizer.encode("qqq\n" * 5000)
    assert 0 not in many
    assert tokenizer.decode(many) == "qqq\n" * 5000


def test_encode_adds_no_token_of_its_own(pieces: TextTokenizer) -> None:
    assert pieces.encode("") == []
    assert pieces.decode(pieces.encode("hello")) == "hello"
    assert pieces.encode("hello") == [pieces.tokens.index("▁hello")]


def test_bytes_of_sentencepiece_tokens(pieces: TextTokenizer) -> None:
    assert pieces.token_bytes(pieces.tokens.index("<0x0A>")) == b"\n"
    assert pieces.token_bytes(pieces.tokens.index("▁he")) == b" he"
    assert pieces.token_bytes(1) == b""


@pytest.mark.parametrize("token", [-1, 320, 1 << 40, np.int64(320), 1.0, "5", None])
@pytest.mark.row("J5")
def test_ids_outside_the_vocabulary_are_refused(byte_level: TextTokenizer, token: object) -> None:
    with pytest.raises(RequestError, match="token id"):
        byte_level.token_bytes(token)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="token id"):
        byte_level.decode([token])  # type: ignore[list-item]


@pytest.mark.row("J5")
def test_numpy_ids_are_ids(byte_level: TextTokenizer) -> None:
    ids = np.array(byte_level.encode("the cat"), dtype=np.int32)
    assert byte_level.decode(ids) == "the cat"  # type: ignore[arg-type]


@pytest.mark.row("J2")
def test_half_a_surrogate_pair_is_refused(byte_level: TextTokenizer) -> None:
    for encode in (byte_level.encode, lambda text: byte_level.encode_batch([text])):
        with pytest.raises(RequestError, match="Unicode"):
            encode("a\ud800b")


@pytest.mark.parametrize("kind", ["byte_level", "pieces"])
@pytest.mark.row("J3")
def test_a_long_text_is_cut_without_changing_its_ids(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: TextTokenizer = request.getfixturevalue(kind)
    text = ("hello the cat  sat.\n\nhello 12 café </s> hello " * 40).strip()
    whole = tokenizer.encode(text)
    monkeypatch.setattr(module, "_LONG", 64)
    assert len(tokenizer._pieces(text)) > 10
    assert tokenizer.encode(text) == whole


def test_a_text_is_not_cut_where_a_token_joins_words(monkeypatch: pytest.MonkeyPatch) -> None:
    values = json.loads(sentencepiece_json())
    model = values["model"]
    model["vocab"]["o▁"] = len(model["vocab"])
    model["merges"].insert(0, ["o", "▁"])
    tokenizer = TextTokenizer.from_json(json.dumps(values).encode())
    monkeypatch.setattr(module, "_LONG", 8)
    assert tokenizer._pieces("hello hello hello") == ["hello hello hello"]


def test_the_canonical_form_survives_and_names_the_mapping(byte_level: TextTokenizer) -> None:
    values = json.loads(byte_level.to_json())
    again = TextTokenizer.from_json(byte_level.to_json())
    assert again.to_json() == byte_level.to_json()
    values["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    values["model"]["vocab"] = dict(reversed(values["model"]["vocab"].items()))
    same = TextTokenizer.from_json(json.dumps(values, indent=1).encode())
    assert same.fingerprint == byte_level.fingerprint
    assert same.to_json() == byte_level.to_json()
    assert same.encode("the cat sat") == byte_level.encode("the cat sat")
    values["model"]["merges"].pop()
    other = TextTokenizer.from_json(json.dumps(values).encode())
    assert other.fingerprint != byte_level.fingerprint


def test_added_tokens_must_have_the_ids_that_the_library_gives(byte_level: TextTokenizer) -> None:
    values = json.loads(byte_level.to_json())
    vocab = values["model"]["vocab"]
    last = next(t for t, i in vocab.items() if i == 319)
    vocab[last], number = 320, 319
    values["added_tokens"].append(values["added_tokens"][0] | {"id": number, "content": "<new>"})
    with pytest.raises(TokenizerError, match="<new>"):
        TextTokenizer.from_json(json.dumps(values).encode())


@pytest.mark.parity
def test_ids_equal_those_of_transformers(shared: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    path = shared / "data/weights/stories260k/tokenizer.json"
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path))
    ours = TextTokenizer.from_json(path.read_bytes(), where=path)
    lines = ["Once upon a time, there was a girl.", " é\n\n日本  x", "", "The end of it\t!"]
    for line in lines:
        ids = theirs.encode(line, add_special_tokens=False)
        assert ours.encode(line) == ids
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
