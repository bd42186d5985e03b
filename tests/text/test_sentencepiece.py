"""SentencePiece model files: what they say is kept, what they cannot say is refused by name."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from miudo.errors import TokenizerError
from miudo.limits import Limits
from miudo.text.pieces import PieceKind
from miudo.text.sentencepiece import parse_sentencepiece
from miudo.text.tokenizer import TextTokenizer

HEAD = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
BYTES = [(f"<0x{b:02X}>", 0.0, int(PieceKind.BYTE)) for b in range(256)]
WORDS = ["▁h", "el", "lo", "▁hel", "▁hello", *"▁helo<user>", "é"]
NORMAL = [(word, -float(i), 1) for i, word in enumerate(dict.fromkeys(WORDS))]


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | float | str | bytes) -> bytes:
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def model_file(
    pieces: list[tuple[str, float, int]], *, model_type: int = 2, **normalizer: Any
) -> bytes:
    numbers = {"charsmap": 2, "adds_space": 3, "squeezes": 4, "escapes": 5}
    settings = {"squeezes": 0} | normalizer
    rows = [field(1, field(1, t) + field(2, s) + field(3, k)) for t, s, k in pieces]
    trainer = field(2, field(3, model_type) + field(35, 1))
    rest = field(3, b"".join(field(numbers[k], v) for k, v in settings.items()))
    return b"".join(rows) + trainer + rest


GOOD = model_file(HEAD + BYTES + NORMAL)


def tokenizer(pieces: list[tuple[str, float, int]], **normalizer: Any) -> TextTokenizer:
    return TextTokenizer(parse_sentencepiece(model_file(pieces, **normalizer)))


def shown(found: TextTokenizer, text: str) -> list[str]:
    return [found.tokens[i] for i in found.encode(text)]


def test_pieces_are_joined_by_score_and_bytes_stand_in() -> None:
    found = tokenizer(HEAD + BYTES + NORMAL)
    assert found.special_ids == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert shown(found, "hello") == ["▁hello"]
    assert shown(found, " hello") == ["▁", "▁hello"]
    assert shown(found, "é\n") == ["▁", "é", "<0x0A>"]
    for text in ("hello", "  x ", "\x00\u2028", "漢 字", "</s>"):
        ids = found.encode(text)
        assert found.decode(ids) == text
        assert not {1, 2} & set(ids)


def test_a_score_that_is_better_is_joined_first() -> None:
    pieces = [("ab", -1.0, 1), ("bc", 0.0, 1), *((c, -9.0, 1) for c in "abc▁")]
    assert shown(tokenizer(HEAD + pieces), "abc") == ["▁", "a", "bc"]


def test_the_space_in_front_is_as_the_file_says() -> None:
    assert shown(tokenizer(HEAD + BYTES + NORMAL, adds_space=0), "hello") == ["h", "el", "lo"]


def test_spaces_are_squeezed_as_the_file_says() -> None:
    found = tokenizer(HEAD + BYTES + NORMAL, squeezes=1)
    assert shown(found, "  hello   hello  ") == ["▁hello", "▁hello"]


def test_user_defined_pieces_come_before_merges_and_spaces() -> None:
    user = [("<user>", 0.0, 4)]
    found = tokenizer(HEAD + BYTES + NORMAL + user)
    assert shown(found, "hello<user>hello") == ["▁hello", "<user>", "h", "el", "lo"]
    assert shown(found, "<user>hello") == ["▁", "<user>", "h", "el", "lo"]
    assert "<user>" not in found.special_ids


def test_an_unknown_character_without_bytes_is_unknown() -> None:
    found = tokenizer(HEAD + NORMAL)
    assert shown(found, "漢字") == ["▁", "<unk>"]


KINDS = {"unigram": 1, "word": 3, "character": 4}


@pytest.mark.parametrize(("name", "number"), KINDS.items(), ids=KINDS)
def test_other_kinds_are_refused_by_name(name: str, number: int) -> None:
    with pytest.raises(TokenizerError, match=rf"SentencePiece {name} model.*tokenizer\.json"):
        parse_sentencepiece(model_file(HEAD, model_type=number), where="tokenizer.model")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no pieces"),
        (b"IQ== 0\nIg== 1\n" * 9, "no pieces"),  # how Llama 3 names a tiktoken file
        (field(1, 7), "a number"),
        (field(1, b"\xff" * 11), "damaged"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "damaged"),
        (model_file([*HEAD, ("a", float("nan"), 1)]), "no number"),
        (model_file([*HEAD, ("a", 0.0, 9)]), "piece 3 is damaged"),
        (field(1, field(1, b"\xff")), "piece 0 is damaged"),
        (model_file([*HEAD, ("a", 0.0, 1), ("a", 0.0, 1)]), "'a' stands twice"),
        (model_file([*HEAD, ("", 0.0, 1)]), "empty"),
        (model_file(HEAD, escapes=0), "writes spaces"),
        (model_file([*HEAD, ("a" * 513, 0.0, 1)]), "piece 3 has 513 characters"),
        (model_file(HEAD) + field(2, field(9, 1) * 5000), "more than 4096 fields"),
    ],
)
def test_what_is_no_model_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(TokenizerError, match=says):
        parse_sentencepiece(data, where="x")


def test_more_pieces_than_the_limit_are_refused() -> None:
    with pytest.raises(TokenizerError, match="more than 9 pieces"):
        parse_sentencepiece(GOOD, limits=Limits(vocab_size=9))


def test_prefixes_and_flipped_bits_are_refused_or_a_tokenizer() -> None:
    rng = random.Random(0)  # noqa: S311
    for _ in range(150):
        damaged = bytearray(GOOD[: rng.choice([len(GOOD), rng.randrange(len(GOOD))])])
        for _ in range(rng.randrange(3)):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        try:
            TextTokenizer(parse_sentencepiece(bytes(damaged))).encode("hello é")
        except TokenizerError:
            continue
