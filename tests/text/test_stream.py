"""Streaming: whole characters only, stop strings across tokens, pieces that join to `decode`."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miudo.errors import RequestError
from miudo.text.stream import TextStream


class ByteTokens:
    """Id b is the byte b; 256 is a special token, 257 a whole word with its space."""

    vocab_size = 258
    fingerprint = "bytes"

    def __init__(self, *, adds_space: bool = False) -> None:
        self.adds_space = adds_space

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.adds_space else text

    def token_bytes(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size:
            raise RequestError(f"token id is {token}")
        return {256: b"", 257: b" word"}.get(token) if token > 255 else bytes([token])  # type: ignore[return-value]


def run(stream: TextStream, ids: Sequence[int]) -> tuple[list[str], str]:
    pieces = [stream.push(i) for i in ids]
    return pieces, "".join(pieces) + stream.finish()


@pytest.mark.row("J5")
def test_a_character_comes_whole() -> None:
    pieces, text = run(TextStream(ByteTokens()), list("aé👍".encode()))
    assert pieces == ["a", "", "é", "", "", "", "👍"]
    assert text == "aé👍"


@pytest.mark.row("J5")
def test_an_unfinished_character_shows_only_at_the_end() -> None:
    stream = TextStream(ByteTokens())
    assert [stream.push(i) for i in "👍".encode()[:3]] == ["", "", ""]
    assert stream.finish() == "\ufffd"


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 257), max_size=40), adds_space=st.booleans())
@pytest.mark.row("J5")
def test_pieces_join_to_decode_whatever_the_ids(ids: list[int], adds_space: bool) -> None:
    tokenizer = ByteTokens(adds_space=adds_space)
    assert run(TextStream(tokenizer), ids)[1] == tokenizer.decode(ids)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=30), cuts=st.sets(st.integers(0, 120)))
@pytest.mark.row("J5")
def test_valid_text_never_shows_a_replacement_midway(text: str, cuts: set[int]) -> None:
    pieces, joined = run(TextStream(ByteTokens()), list(text.encode()))
    assert joined == text
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("abc", max_size=30),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_stop_string_is_cut_out_and_no_part_of_it_shows(text: str, stop: list[str]) -> None:
    stream = TextStream(ByteTokens(), stop)
    seen = ""
    for i in text.encode():
        seen += stream.push(i)
        assert not any(s in seen for s in stop)
    seen += stream.finish()
    ends = [(text.find(s) + len(s), text.find(s), s) for s in stop if s in text]
    if ends:
        _, start, found = min(ends)
        assert (seen, stream.stopped) == (text[:start], found)
    else:
        assert (seen, stream.stopped) == (text, None)


def test_the_cut_of_ids_does_not_choose_the_stop_string() -> None:
    stream = TextStream(ByteTokens(), ["word", "or"])
    assert stream.push(257) == " w"
    assert stream.stopped == "or"
    assert stream.push(65) == ""
    assert stream.finish() == ""


def test_a_stop_string_at_the_very_first_token() -> None:
    stream = TextStream(ByteTokens(), [" word"])
    assert stream.push(257) == ""
    assert stream.stopped == " word"


def test_what_only_began_a_stop_string_is_given_back() -> None:
    stream = TextStream(ByteTokens(), ["###"])
    assert [stream.push(i) for i in b"a##b#"] == ["a", "", "", "##b", ""]
    assert stream.finish() == "#"


def test_the_added_space_goes_at_a_start_and_stays_inside() -> None:
    tokenizer = ByteTokens(adds_space=True)
    assert TextStream(tokenizer).push(257) == "word"
    assert TextStream(tokenizer, after=[65, 256]).push(257) == "word"
    assert TextStream(tokenizer, after=[65]).push(257) == " word"
    stream = TextStream(tokenizer)
    assert [stream.push(i) for i in (256, 257, 257)] == ["", "word", " word"]


@pytest.mark.parametrize("stop", [[""], ["a", ""], "abc", [1]])
def test_stop_strings_that_mean_nothing_are_refused(stop: Sequence[str]) -> None:
    with pytest.raises(RequestError, match="stop"):
        TextStream(ByteTokens(), stop)


@pytest.mark.row("J5")
def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(RequestError, match="258"):
        TextStream(ByteTokens()).push(258)
