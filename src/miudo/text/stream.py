"""Text out of ids that arrive one by one, without ever showing half a character.

For: streaming to a terminal or over HTTP, and stop strings that lie across tokens.
Not for: deciding which id comes next (`miudo.engine.generate`).
Read next: `miudo.text.tokenizer`, whose `decode` the joined pieces equal.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence

from miudo.errors import RequestError
from miudo.protocol import Tokenizer

__all__ = ["TextStream"]


class TextStream:
    """Bytes wait until they are a whole character, text until it cannot begin a stop string.

    All pieces together equal `tokenizer.decode` of the ids, cut before the first stop string.
    U+FFFD stands only for bytes that no later byte can make valid, as in `decode`.
    `after` are the ids before the first pushed one: a SentencePiece tokenizer's leading space is
    taken away at the start of a text or after a special token, not inside a text. `shown` are
    special tokens that are to be seen here, and their bytes.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        after: Sequence[int] = (),
        shown: Mapping[int, bytes] | None = None,
    ) -> None:
        if isinstance(stop, str) or not all(isinstance(s, str) and s for s in stop):
            raise RequestError("stop holds an empty string or is no list of strings")
        self.stopped: str | None = None
        self._tokenizer, self._shown = tokenizer, shown or {}
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        at_start = not after or not tokenizer.token_bytes(after[-1])
        self._strip = at_start and bool(getattr(tokenizer, "adds_space", False))

    def push(self, token: int) -> str:
        """Returns the text that `token` completes, often "". After a stop string always "".

        Raises RequestError for an id outside the vocabulary.
        """
        if self.stopped is not None:
            return ""
        raw = self._shown.get(token) or self._tokenizer.token_bytes(token)
        return self._take(self._decoder.decode(raw))

    def finish(self) -> str:
        """Returns what was still held; an unfinished character becomes U+FFFD."""
        if self.stopped is not None:
            return ""
        text = self._take(self._decoder.decode(b"", final=True))
        text, self._held = text + self._held, ""
        return text

    def _take(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            text = text.removeprefix(" ")
        self._held += text
        found = [(at + len(s), at, s) for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            # The one that ends first, as if characters came singly: how the ids cut the text
            # must not decide which stop string is found.
            _, at, self.stopped = min(found)
            return self._release(at, keep=False)
        return self._release(len(self._held) - self._may_begin_stop())

    def _may_begin_stop(self) -> int:
        """Returns the length of the longest end of the held text that begins a stop string."""
        longest = max(map(len, self._stop), default=0) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-size:]) for s in self._stop):
                return size
        return 0

    def _release(self, end: int, *, keep: bool = True) -> str:
        text, rest = self._held[:end], self._held[end:]
        self._held = rest if keep else ""
        return text
