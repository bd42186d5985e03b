"""Alignment of two tokenizers against brute force, and what a row may hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miudo.compress.distill.spans import AlignedRow, Aligner, common_places
from miudo.errors import DataError
from miudo.text.tokenizer import TextTokenizer, train_bpe

TEXT = "o gato dorme na casa azul. a casa do gato é pequena, e o cão não dorme: canção, coração. "
SPECIALS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>")
SMALL = train_bpe([TEXT + "zunido " * 9], vocab_size=280)
# Other specials, other merges, other ids.
LARGE = train_bpe(
    [TEXT * 3, "the cat sleeps in the house"], vocab_size=330, special=("</s>", "<x>")
)
ALIGNER = Aligner(SMALL, LARGE, (SMALL.special_ids["<|end|>"], LARGE.special_ids["</s>"]))


def brute(row: list[int], found: AlignedRow) -> list[tuple[int, int]]:
    """All (i, j) whose beginnings stand for the same bytes, by comparing every pair."""
    end_s, end_t = SMALL.special_ids["<|end|>"], LARGE.special_ids["</s>"]

    def read(tokenizer: TextTokenizer, ids: list[int], end: int) -> bytes:
        return b"".join(b"\xff" if i == end else tokenizer.token_bytes(i) for i in ids)

    mine = [read(SMALL, row[:i], end_s) for i in range(len(row) + 1)]
    theirs = [read(LARGE, found.teacher_ids[:j], end_t) for j in range(len(found.teacher_ids) + 1)]
    return [(i, j) for i, a in enumerate(mine) for j, b in enumerate(theirs) if a == b]


def aligned(row: list[int]) -> AlignedRow:
    (found,) = ALIGNER.rows(np.array([row], dtype=np.int32))
    return found


def test_places_are_those_of_brute_force() -> None:
    row = SMALL.encode(TEXT)
    found = aligned(row)
    assert found.teacher_ids == LARGE.encode(TEXT)
    assert [tuple(p) for p in found.places.tolist()] == brute(row, found)
    assert 10 < len(found.places) < len(row)  # some tokens are the same, some are not


words = st.text(alphabet="aeocdgnmé ã.,çж中🙂", min_size=1, max_size=30)


@given(documents=st.lists(words, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_places_of_any_text_are_those_of_brute_force(documents: list[str]) -> None:
    end = SMALL.special_ids["<|end|>"]
    row = [number for text in documents for number in [*SMALL.encode(text), end]]
    found = aligned(row)
    assert [tuple(p) for p in found.places.tolist()] == brute(row, found)
    assert found.places[-1].tolist() == [len(row), len(found.teacher_ids)]


@given(begin=st.integers(0, 12), end=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_a_row_may_begin_and_end_inside_a_character(begin: int, end: int) -> None:
    ids = SMALL.encode("中ж🙂 gato é 🙂中ж")
    row = ids[begin : len(ids) - end]
    if not row:
        return
    found = aligned(row)
    raw = b"".join(SMALL.token_bytes(i) for i in row)
    whole = b"".join(LARGE.token_bytes(i) for i in found.teacher_ids)
    head = raw.find(whole) if whole else 0
    assert 0 <= head <= 3  # what is missing belongs to a character that was cut
    assert len(raw) - head - len(whole) <= 3
    for i, j in found.places.tolist()[1:]:
        mine = b"".join(SMALL.token_bytes(t) for t in row[:i])
        theirs = b"".join(LARGE.token_bytes(t) for t in found.teacher_ids[:j])
        assert mine[head:] == theirs
    if begin == 0 and len(whole) > 6:
        assert len(found.places) > 1


def test_bytes_that_are_no_text_are_not_compared() -> None:
    end = SMALL.special_ids["<|end|>"]
    broken = [i for i in range(SMALL.vocab_size) if SMALL.token_bytes(i) == b"\xe9"]
    row = [*SMALL.encode("gato"), broken[0], *SMALL.encode("casa"), end, *SMALL.encode("gato")]
    places = aligned(row).places.tolist()
    first = row.index(end) + 1
    assert places[0] == [0, 0]
    assert [i for i, _ in places[1:]] == list(range(first, len(row) + 1))[: len(places) - 1]


def test_tokens_of_equal_bytes_are_shared_and_ends_are() -> None:
    pairs = dict(ALIGNER.shared.tolist())
    assert pairs.pop(SMALL.special_ids["<|end|>"]) == LARGE.special_ids["</s>"]
    assert all(SMALL.token_bytes(i) == LARGE.token_bytes(j) for i, j in pairs.items())
    mine = {SMALL.token_bytes(i) for i in range(SMALL.vocab_size)} - {b""}
    theirs = {LARGE.token_bytes(j) for j in range(LARGE.vocab_size)} - {b""}
    assert len(pairs) == len(mine & theirs)
    assert 256 < len(pairs) < len(mine)


def test_one_tokenizer_shares_all_and_every_place_is_common() -> None:
    aligner = Aligner(SMALL, SMALL)
    assert aligner.shared.tolist() == [[i, i] for i in range(SMALL.vocab_size)]
    row = [*SMALL.encode(TEXT), SMALL.special_ids["<|end|>"], *SMALL.encode("casa")]
    (found,) = aligner.rows(np.array([row], dtype=np.int32))
    assert found.teacher_ids == row
    assert found.places.tolist() == [[i, i] for i in range(len(row) + 1)]


def test_a_special_token_without_counterpart_is_refused() -> None:
    with pytest.raises(DataError, match="no token like"):
        aligned([*SMALL.encode("gato"), SMALL.special_ids["<|user|>"]])


def test_common_places_of_tokens_without_bytes() -> None:
    assert common_places([1, 3, 3, 6], [2, 3, 6, 6]) == [(3, 2), (4, 4)]
