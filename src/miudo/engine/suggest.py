"""The next words of a text, or the ends of its last one, as a keyboard shows them.

For: whole words with their probabilities, found by search rather than drawn.
Not for: running text (`miudo.engine.generate`) or learning a user's words.
Read next: `miudo.protocol.Engine.step`.

Shapes: V vocab_size.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from miudo.errors import RequestError
from miudo.protocol import Engine, FloatArray, SeqWork, Tokenizer, Want

__all__ = ["Suggester", "Suggestion"]

_WIDTH = 8
_STEPS = 20
_TOKENS = 8
_LEAST = 1e-4
"""Width and length of the search, and the least probability that is worth showing."""
_CONTEXT_KEPT = 0.75


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A whole word and its probability, given the text and the letters typed of it."""

    word: str
    probability: float


@dataclass(frozen=True, slots=True)
class _Partial:
    ids: tuple[int, ...]
    text: bytes


class Suggester:
    """Suggests words from one conversation, whose cache serves the next keystroke.

    `start` are the ids that every text begins with, such as the model's bos id. Close it when
    done. A word is letters, digits, apostrophes and hyphens; the search is best first over
    tokens, so that a word of several tokens has its whole probability.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, start: Sequence[int] = ()) -> None:
        self._engine, self._tokenizer, self._start = engine, tokenizer, tuple(start)
        self._conversation = engine.open()
        self._held: list[int] = []
        size = engine.config.vocab_size
        known = range(min(tokenizer.vocab_size, size))
        self._bytes = [tokenizer.token_bytes(i) for i in known]
        self._sorted = sorted((piece, i) for i, piece in enumerate(self._bytes) if piece)
        self._inside = np.zeros(size, np.bool_)
        self._inside[: len(self._bytes)] = [_continues(piece) for piece in self._bytes]
        self._letters = np.flatnonzero(self._inside)

    def close(self) -> None:
        """Frees the conversation."""
        self._engine.close(self._conversation)

    def suggest(self, text: str, count: int = 3) -> list[Suggestion]:
        """Returns up to `count` words, most probable first.

        After letters: words that begin with them; otherwise the next words. Only as much of a
        long text is read as the model has positions for. Raises RequestError for a count below
        1 or above 32.
        """
        if not 1 <= count <= 32:
            raise RequestError(f"count is {count}, allowed 1 to 32")
        context, typed = _part(text)
        logprobs = self._after(self._ids(context))
        found: dict[str, float] = {}
        queue: list[tuple[float, int, _Partial]] = []
        order = 0
        for logprob, partial in self._first(logprobs, typed):
            heapq.heappush(queue, (-logprob, order, partial))
            order += 1
        base = list(self._held)
        for _ in range(_STEPS):
            if not queue or _settled(found, count, -queue[0][0]):
                break
            negative, _, partial = heapq.heappop(queue)
            logprobs = self._after(base + list(partial.ids))
            whole = len(partial.text) >= len(typed)
            if whole and (word := _word(partial.text)):
                ends = float(np.exp(logprobs[~self._inside], dtype=np.float64).sum())
                found[word] = found.get(word, 0.0) + float(np.exp(-negative)) * ends
            if len(partial.ids) < _TOKENS:
                for logprob, longer in self._longer(logprobs, partial, typed):
                    heapq.heappush(queue, (negative - logprob, order, longer))
                    order += 1
        likely = [item for item in found.items() if item[1] >= _LEAST]
        best = sorted(likely, key=lambda item: (-item[1], item[0]))[:count]
        return [Suggestion(word, min(1.0, probability)) for word, probability in best]

    def _ids(self, context: str) -> list[int]:
        ids = [*self._start, *self._tokenizer.encode(context)]
        room = self._engine.config.max_positions - _TOKENS
        if len(ids) > room:
            # Cut well below the limit, so that the next keystrokes find the same beginning.
            kept = int(room * _CONTEXT_KEPT)
            ids = [*self._start, *ids[len(ids) - kept + len(self._start) :]]
        if not ids:
            raise RequestError(
                "there is no text and the model has no start token", remedy="Give some text"
            )
        return ids

    def _after(self, ids: list[int]) -> FloatArray:
        """Returns log-probabilities [V] of what follows `ids`, reading only what is new."""
        same = 0
        for held, wanted in zip(self._held, ids[:-1], strict=False):
            if held != wanted:
                break
            same += 1
        self._engine.truncate(self._conversation, same)
        self._held = self._held[:same]
        work = SeqWork(self._conversation, ids[same:], want=Want.LAST_LOGITS)
        (out,) = self._engine.step([work])
        self._held = list(ids)
        if out.logits is None:
            raise RequestError("the engine returned no logits")
        x = out.logits.astype(np.float64)
        x = x - x.max()
        logprobs: FloatArray = (x - np.log(np.exp(x).sum())).astype(np.float32)
        return logprobs

    def _first(self, logprobs: FloatArray, typed: bytes) -> Iterator[tuple[float, _Partial]]:
        """Yields the best first tokens that agree with what was typed, renormalised."""
        ids = np.array(self._fitting(typed), np.int64)
        total = _total(logprobs[ids])
        for token in _best(ids, logprobs):
            yield float(logprobs[token]) - total, _Partial((token,), self._bytes[token])

    def _fitting(self, typed: bytes) -> list[int]:
        """Returns the tokens that begin `typed`, or begin with it and go on as a word does."""
        found = []
        for end in range(1, len(typed)):
            found += self._spelled(typed[:end], exactly=True)
        if typed:
            return found + [i for i in self._spelled(typed) if _tail(self._bytes[i])]
        return [i for piece, i in self._sorted if _tail(piece)]

    def _spelled(self, start: bytes, *, exactly: bool = False) -> list[int]:
        at = bisect_left(self._sorted, (start, -1))
        found = []
        for piece, token in islice(self._sorted, at, None):
            if not piece.startswith(start) or (exactly and piece != start):
                break
            found.append(token)
        return found

    def _longer(
        self, logprobs: FloatArray, partial: _Partial, typed: bytes
    ) -> Iterator[tuple[float, _Partial]]:
        rest = typed[len(partial.text) :]
        ids, total = self._letters, 0.0
        if rest:
            ids = np.array([i for i in self._fitting(rest) if self._inside[i]], np.int64)
            total = _total(logprobs[ids])
        for token in _best(ids, logprobs):
            longer = _Partial((*partial.ids, token), partial.text + self._bytes[token])
            yield float(logprobs[token]) - total, longer


def _part(text: str) -> tuple[str, bytes]:
    """Returns the text before the word that is to be found, and what is typed of that word.

    A space before the word belongs to it, since tokenizers put it there.
    """
    at = len(text)
    while at and _in_word(text[at - 1]):
        at -= 1
    if at and text[at - 1] == " ":
        at -= 1
    if at == len(text) and text and not text[-1].isspace():
        return text, b" "  # after a full stop or a comma comes a space
    return text[:at], text[at:].encode()


def _in_word(character: str) -> bool:
    return character.isalnum() or character in "'\u2019-"


def _continues(piece: bytes) -> bool:
    """Whether a token goes on with a word; a byte of a longer character may."""
    if not piece:
        return False
    text = piece.decode(errors="replace")
    return all(_in_word(c) or c == "\ufffd" for c in text)


def _best(ids: npt.NDArray[np.int64], logprobs: FloatArray) -> list[int]:
    found: list[int] = ids[np.argsort(-logprobs[ids], kind="stable")[:_WIDTH]].tolist()
    return found


def _total(logprobs: FloatArray) -> float:
    """Returns the logarithm of the sum of probabilities; 0 for none, where it is not used."""
    if not len(logprobs):
        return 0.0
    return float(np.log(np.exp(logprobs, dtype=np.float64).sum() + 1e-300))


def _tail(piece: bytes) -> bool:
    return _continues(piece.removeprefix(b" ")) or piece == b" "


def _word(text: bytes) -> str:
    """Returns the word that `text` is, "" where it is none or breaks a character."""
    try:
        word = text.decode().strip(" ")
    except UnicodeDecodeError:
        return ""
    return word if any(c.isalnum() for c in word) else ""


def _settled(found: dict[str, float], count: int, best_left: float) -> bool:
    """Whether nothing that is left can come among the best `count`."""
    if len(found) < count:
        return False
    return sorted(found.values(), reverse=True)[count - 1] >= float(np.exp(best_left))
