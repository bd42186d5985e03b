"""Suggested words against a language whose words and probabilities are known."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from miudo.config import ModelConfig
from miudo.engine.fake import FakeEngine
from miudo.engine.suggest import Suggester, _part
from miudo.errors import RequestError
from miudo.protocol import SeqWork, StepOut

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


def test_ways_to_spell_the_same_letters_are_weighed_as_they_are() -> None:
    whole = Pieces.pieces.index(b" ca")

    def language(ids: Sequence[int]) -> np.ndarray:
        """ " ca" goes on as "car"; " " is followed by "c" once in a hundred, then by "at"."""
        after = {END: 1.0}
        if ids[-1] == ord("."):
            after = {whole: 0.5, ord(" "): 0.5}
        elif ids[-1] == ord(" "):
            after = {ord("z"): 0.99, ord("c"): 0.01}
        elif ids[-1] == ord("c"):
            after = {ord("a"): 1.0}
        elif ids[-1] in (whole, ord("a")):
            after = {ord("r") if ids[-1] == whole else ord("t"): 1.0}
        logits = np.full(SIZE, -40.0, np.float32)
        for token, probability in after.items():
            logits[token] = np.log(probability)
        return logits

    _, engine = suggester()
    one = Suggester(FakeEngine(engine.config, language), Pieces(), start=(END,))
    assert words(one.suggest("x. ca")) == {"car": 0.5 / 0.505, "cat": 0.005 / 0.505}


def test_many_words_come_in_order(made: Suggester) -> None:
    found = made.suggest("x. ", 32)
    assert [s.word for s in found[:5]] == ["cat", "car", "dog", "pão", "cart"]
    assert found == sorted(found, key=lambda s: -s.probability)


class Counting(FakeEngine):
    """Counts the ids that it was given to read."""

    read = 0

    def step(self, batch: Sequence[SeqWork]) -> list[StepOut]:
        self.read += sum(len(work.ids) for work in batch)
        return super().step(batch)


def counting(positions: int) -> tuple[Suggester, Counting]:
    engine = Counting(suggester(positions)[1].config, byte_language)
    return Suggester(engine, Pieces(), start=(END,)), engine


def test_a_keystroke_reads_only_what_is_new() -> None:
    one, engine = counting(256)
    text = "a long text of which not all is read again. "
    one.suggest(text)
    for typed in ("c", "ca", "car"):
        before = engine.read
        one.suggest(text + typed)
        assert engine.read - before < len(text)


def test_a_text_over_the_models_positions_is_seldom_read_anew() -> None:
    one, engine = counting(128)
    text, anew = "", 0
    for _ in range(60):
        text += "and so. "
        before = engine.read
        one.suggest(text, 1)
        anew += engine.read - before > 60
        assert engine._ids[1][0] == END
    assert len(text) > 3 * 128
    assert anew <= 60 * 8 / 20  # at most once in a quarter of the room, about 20 ids


@pytest.mark.parametrize("text", ["x. cafe\u0301", "x. zz", "x. (", "x $", "x" * 200])
def test_what_no_word_of_the_language_begins_with_gives_none_that_is_wrong(
    made: Suggester, text: str
) -> None:
    typed = unicodedata.normalize("NFC", text).rpartition(" ")[2].lstrip("($")
    assert all(s.word.startswith(typed) for s in made.suggest(text, 3))


@pytest.mark.parametrize(
    ("text", "context", "typed"),
    [("", "", b""), ("a b", "a", b" b"), ("a,", "a,", b" "), ("a, ", "a,", b" "),
     ("He (", "He (", b""), ("Cost: $", "Cost: $", b""), ("a\n", "a\n", b""),
     ("one/tw", "one/", b"tw"),
     ("cafe\u0301", "", "caf\u00e9".encode()), ("don't", "", b"don't"), ("a  b", "a ", b" b"),
     ("x \u0915\u093f", "x", " \u0915\u093f".encode())],
)  # fmt: skip
def test_where_the_word_begins(text: str, context: str, typed: bytes) -> None:
    assert _part(unicodedata.normalize("NFC", text)) == (context, typed)


@pytest.mark.parametrize("count", [0, 33, -1])
def test_a_count_out_of_range_is_refused(made: Suggester, count: int) -> None:
    with pytest.raises(RequestError, match="1 to 32"):
        made.suggest("x", count)


def test_no_text_and_no_start_token_is_refused() -> None:
    one = Suggester(suggester()[1], Pieces())
    with pytest.raises(RequestError, match="start token"):
        one.suggest("")


def test_what_is_forgotten_is_held_no_more() -> None:
    one, engine = suggester()
    first = one.suggest("the ca")
    assert engine.pages_used > 0
    one.forget()
    assert engine.pages_used == 0
    assert one.suggest("the ca") == first
