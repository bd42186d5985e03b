"""The next words of a text, or the ends of its last one, as a keyboard shows them.

For: whole words with their probabilities, found by search rather than drawn.
Not for: running text (`miudo.engine.generate`) or learning a user's words.
Read next: `miudo.protocol.Engine.step`.

Shapes: V vocab_size.
"""

from __future__ import annotations

import heapq
import math
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from miudo.errors import RequestError
from miudo.protocol import Engine, FloatArray, SeqWork, Tokenizer, Want

__all__ = ["Suggester", "Suggestion"]

_TYPED_BYTES = 64
"""More letters than this in a row are no word that could be completed."""
_SPELLING_STEPS = 12
_SPELLING_SHARE = 1e-3
"""Ways to spell the typed letters that are looked at, and the least share of them that counts."""
_WORD_TOKENS = 8
_LEAST = 1e-4
"""The most tokens of a word beyond the typed letters, and the least probability worth showing."""
_CLOSING = frozenset(".,;:!?\u2026)]}\u201d\u00bb")
_MARKS = ("Mn", "Mc")


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A whole word, and its probability given the text, what is typed, and that a word follows."""

    word: str
    probability: float


@dataclass(frozen=True, slots=True)
class _Path:
    """Tokens after the context, the bytes they stand for, log of their probability."""

    ids: tuple[int, ...]
    text: bytes
    logprob: float


class Suggester:
    """Suggests words from one conversation, whose cache serves the next keystroke.

    `start` are the ids that every text begins with, such as the model's bos id. Close it when
    done. A word is letters, digits, marks, apostrophes and hyphens. The typed letters may be
    spelled by several rows of tokens: all that matter are summed, and so are all the ways in
    which a word is found to go on.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        start: Sequence[int] = (),
        adapter: str | None = None,
    ) -> None:
        self._engine, self._tokenizer, self._start = engine, tokenizer, tuple(start)
        self._adapter = adapter
        self._conversation = engine.open()
        self._held: list[int] = []
        size = engine.config.vocab_size
        known = range(min(tokenizer.vocab_size, size))
        self._bytes = [tokenizer.token_bytes(i) for i in known]
        self._longest = max(map(len, self._bytes))
        self._sorted = sorted((piece, i) for i, piece in enumerate(self._bytes) if piece)
        self._inside = np.zeros(size, np.bool_)
        self._inside[: len(self._bytes)] = [_goes_on(piece) for piece in self._bytes]
        self._letters = np.flatnonzero(self._inside)

    def positions(self, text: str) -> int:
        """Returns how many positions `suggest` takes in at most for `text`."""
        most = len(text.encode(errors="surrogatepass")) + self._spare
        return min(self._engine.config.max_positions, most)

    def close(self) -> None:
        """Frees the conversation."""
        self._engine.close(self._conversation)

    def forget(self) -> None:
        """Forgets the text that was read last; the next one is read from its beginning."""
        self._engine.truncate(self._conversation, 0)
        self._held = []

    def suggest(self, text: str, count: int = 3) -> list[Suggestion]:
        """Returns up to `count` words, most probable first.

        After letters: words that begin with them; otherwise the next words. Only as much of a
        long text is read as the model has positions for. Raises RequestError for a count below
        1 or above 32, or where there is no text and no start token.
        """
        if not 1 <= count <= 32:
            raise RequestError(f"count is {count}, allowed 1 to 32")
        context, typed = _part(unicodedata.normalize("NFC", text))
        if len(typed) > _TYPED_BYTES:
            return []
        base = self._ids(context)
        begun = list(self._spellings(base, typed))
        if not begun:
            return []
        total = math.log(sum(math.exp(path.logprob) for path in begun))
        found = self._words(base, begun, count, total)
        likely = [item for item in found.items() if item[1] >= _LEAST]
        best = sorted(likely, key=lambda item: (-item[1], item[0]))[:count]
        return [Suggestion(word, min(1.0, probability)) for word, probability in best]

    def _spellings(self, base: list[int], typed: bytes) -> Iterator[_Path]:
        """Yields the paths that cover `typed`: the token that completes it may go beyond."""
        queue = [(0.0, 0, _Path((), b"", 0.0))]
        covered = 0.0
        for order in range(1, _SPELLING_STEPS + 1):
            if not queue or math.exp(-queue[0][0]) < _SPELLING_SHARE * covered:
                return
            _, _, path = heapq.heappop(queue)
            logprobs = self._after([*base, *path.ids])
            rest = typed[len(path.text) :]
            for token in self._covering(rest):
                longer = _longer(path, token, self._bytes[token], logprobs)
                covered += math.exp(longer.logprob)
                yield longer
            for at, token in enumerate(self._beginning(rest)):
                longer = _longer(path, token, self._bytes[token], logprobs)
                heapq.heappush(queue, (-longer.logprob, order * len(typed) + at, longer))

    def _words(
        self, base: list[int], begun: list[_Path], count: int, total: float
    ) -> dict[str, float]:
        """Returns words and probabilities, searching the likeliest beginnings first."""
        steps, width = 8 + 4 * count, 8 + 4 * count
        best = heapq.nlargest(2 * steps, begun, key=lambda path: path.logprob)
        queue = [(-path.logprob, at, path) for at, path in enumerate(best)]
        heapq.heapify(queue)
        order, found = len(queue), dict[str, float]()
        for _ in range(steps):
            if not queue or _settled(found, count, math.exp(-queue[0][0] - total)):
                break
            _, _, path = heapq.heappop(queue)
            logprobs = self._after([*base, *path.ids])
            if word := _word(path.text):
                ends = float(np.exp(logprobs[~self._inside], dtype=np.float64).sum())
                found[word] = found.get(word, 0.0) + math.exp(path.logprob - total) * ends
            if len(path.ids) >= _WORD_TOKENS + _SPELLING_STEPS:
                continue
            width = min(width, len(self._letters))
            likely = np.argpartition(-logprobs[self._letters], width - 1)[:width]
            for token in self._letters[likely].tolist():
                longer = _longer(path, token, self._bytes[token], logprobs)
                heapq.heappush(queue, (-longer.logprob, order, longer))
                order += 1
        return found

    def _ids(self, context: str) -> list[int]:
        room = max(1, self._engine.config.max_positions - self._spare)
        most = 2 * room * self._longest  # bytes are no fewer than characters
        if len(context) > 2 * most:  # only the end is read: the rest need not be cut in tokens
            context = context[(len(context) // most - 1) * most :]
        ids = self._tokenizer.encode(context)
        if len(ids) > room:
            # By quarters of the room, so that the next keystrokes find the same beginning.
            quarter = max(1, room // 4)
            ids = ids[-(-(len(ids) - room) // quarter) * quarter :]
        if not self._start and not ids:
            raise RequestError(
                "there is no text and the model has no start token", remedy="Give some text"
            )
        return [*self._start, *ids]

    @property
    def _spare(self) -> int:
        """Positions for the start and for what is searched after the text."""
        return _SPELLING_STEPS + 2 * _WORD_TOKENS + len(self._start)

    def _after(self, ids: list[int]) -> FloatArray:
        """Returns log-probabilities [V] of what follows `ids`, reading only what is new."""
        same = 0
        for held, wanted in zip(self._held, ids[:-1], strict=False):
            if held != wanted:
                break
            same += 1
        self._engine.truncate(self._conversation, same)
        self._held = self._held[:same]
        work = SeqWork(self._conversation, ids[same:], want=Want.LAST_LOGITS, adapter=self._adapter)
        (out,) = self._engine.step([work])
        self._held = list(ids)
        if out.logits is None:
            raise RequestError("the engine returned no logits")
        x = out.logits.astype(np.float64)
        x -= x.max()
        logprobs: FloatArray = (x - math.log(np.exp(x).sum())).astype(np.float32)
        return logprobs

    def _covering(self, rest: bytes) -> list[int]:
        """Returns the tokens that begin with all of `rest` and go on as a word does."""
        if not rest:
            return self._letters.tolist()
        return [
            token
            for token in self._spelled(rest)
            if _goes_on(self._bytes[token].removeprefix(b" ")) or self._bytes[token] == b" "
        ]

    def _beginning(self, rest: bytes) -> list[int]:
        """Returns the tokens that are a true beginning of `rest`."""
        ends = range(1, len(rest))
        return [token for end in ends for token in self._spelled(rest[:end], exactly=True)]

    def _spelled(self, start: bytes, *, exactly: bool = False) -> list[int]:
        found = []
        for piece, token in islice(self._sorted, bisect_left(self._sorted, (start, -1)), None):
            if not piece.startswith(start) or (exactly and piece != start):
                break
            found.append(token)
        return found


def _longer(path: _Path, token: int, piece: bytes, logprobs: FloatArray) -> _Path:
    return _Path((*path.ids, token), path.text + piece, path.logprob + float(logprobs[token]))


def _part(text: str) -> tuple[str, bytes]:
    """Returns the text before the word that is to be found, and what is typed of that word.

    A space before the word belongs to it, since tokenizers put it there; after a full stop or
    a comma it is understood.
    """
    at = len(text)
    while at and _in_word(text[at - 1]):
        at -= 1
    if at == len(text) and text and text[-1] in _CLOSING:
        return text, b" "
    if at and text[at - 1] == " ":
        at -= 1
    return text[:at], text[at:].encode()


def _in_word(character: str) -> bool:
    return (
        character.isalnum() or character in "'\u2019-" or unicodedata.category(character) in _MARKS
    )


def _goes_on(piece: bytes) -> bool:
    """Whether a token goes on with a word; a byte of a longer character may."""
    text = piece.decode(errors="replace")
    return bool(text) and all(_in_word(c) or c == "\ufffd" for c in text)


def _word(text: bytes) -> str:
    """Returns the word that `text` is, "" where it is none or breaks a character."""
    try:
        word = text.decode().removeprefix(" ")
    except UnicodeDecodeError:
        return ""
    return word if any(c.isalnum() for c in word) else ""


def _settled(found: dict[str, float], count: int, best_left: float) -> bool:
    """Whether nothing that is left can come among the best `count`."""
    if len(found) < count:
        return False
    return sorted(found.values(), reverse=True)[count - 1] >= best_left
