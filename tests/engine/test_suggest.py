"""Suggested words against a language whose words and probabilities are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from miudo.config import ModelConfig
from miudo.engine.fake import FakeEngine
from miudo.engine.suggest import Suggester
from miudo.errors import RequestError

WORDS = {" cat": 0.4, " car": 0.24, " cart": 0.06, " dog": 0.2, " pão": 0.1}
END = 256


class Pieces:
    """Bytes, the end token, and a few longer tokens."""

    pieces = (*(bytes([i]) for i in range(256)), b"", b" ca", b" the", b"rt", b" d", b"og")
    vocab_size = len(pieces)
    fingerprint = "pieces"

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token]


SIZE = Pieces.vocab_size + 4  # rows that pad the vocabulary


def byte_language(ids: Sequence[int]) -> np.ndarray:
    """Logits of a model in which each of WORDS follows any text, then a full stop."""
    text = b"".join(Pieces.pieces[i] for i in ids).decode(errors="surrogateescape")
    held = text.rpartition(" ")
    open_word = (" " + held[2]).encode(errors="surrogateescape") if held[1] else b""
    after = dict.fromkeys(range(SIZE), 0.0)
    rest = {w.encode(): p for w, p in WORDS.items() if w.encode().startswith(open_word)}
    for word, probability in (rest or {w.encode(): p for w, p in WORDS.items()}).items():
        if not rest or not open_word:
            after[word[0]] += probability
        elif word == open_word:
            after[ord(".")] += probability
        else:
            after[word[len(open_word)]] += probability
    with np.errstate(divide="ignore"):
        logits = np.log(np.array(list(after.values())) + 1e-12)
    return np.asarray(logits, np.float32)


def suggester(positions: int = 64) -> tuple[Suggester, FakeEngine]:
    config = ModelConfig.uniform(
        n_layers=1, d_model=8, n_heads=1, d_ff=8, vocab_size=SIZE, max_positions=positions
    )
    engine = FakeEngine(config, byte_language)
    return Suggester(engine, Pieces(), start=(END,)), engine


@pytest.fixture
def made() -> Iterator[Suggester]:
    one, engine = suggester()
    yield one
    one.close()
    assert engine.opened == engine.closed == 1


def words(found: Sequence[object]) -> dict[str, float]:
    return {s.word: pytest.approx(s.probability, abs=1e-6) for s in found}  # type: ignore[attr-defined]


def test_the_next_words_have_their_whole_probability(made: Suggester) -> None:
    assert words(made.suggest("x. ", 5)) == {
        "cat": 0.4, "car": 0.24, "dog": 0.2, "pão": 0.1, "cart": 0.06,
    }  # fmt: skip


def test_after_a_full_stop_the_space_is_understood(made: Suggester) -> None:
    assert words(made.suggest("x.", 2)) == {"cat": 0.4, "car": 0.24}


def test_letters_that_were_typed_are_kept_and_renormalised(made: Suggester) -> None:
    found = made.suggest("x. ca", 3)
    assert words(found) == {"cat": 0.4 / 0.7, "car": 0.24 / 0.7, "cart": 0.06 / 0.7}
    assert [s.word for s in made.suggest("x. cart")] == ["cart"]


def test_no_word_is_made_of_half_a_character(made: Suggester) -> None:
    assert words(made.suggest("x. p", 3)) == {"pão": 1.0}


def test_letters_that_nothing_begins_with_give_nothing_likely(made: Suggester) -> None:
    assert all(s.probability <= 1.0 for s in made.suggest("x. zz", 3))


def test_a_keystroke_reads_only_what_is_new() -> None:
    one, engine = suggester()
    one.suggest("x. ca")
    before = len(engine._ids[1])
    one.suggest("x. ca")
    held = engine._ids[1]
    assert held[:3] == [END, *b"x."]
    assert len(held) <= before + 8


def test_a_long_text_is_cut_in_front_and_keeps_its_start() -> None:
    one, engine = suggester(positions=32)
    assert words(one.suggest("y" * 500 + ". ", 1)) == {"cat": 0.4}
    assert engine._ids[1][0] == END


@pytest.mark.parametrize("count", [0, 33, -1])
def test_a_count_out_of_range_is_refused(made: Suggester, count: int) -> None:
    with pytest.raises(RequestError, match="1 to 32"):
        made.suggest("x", count)


def test_no_text_and_no_start_token_is_refused() -> None:
    one = Suggester(suggester()[1], Pieces())
    with pytest.raises(RequestError, match="start token"):
        one.suggest("")
