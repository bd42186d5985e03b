"""Log-probabilities in the lists of `/v1/completions`.

For: tokens, where each begins, and its alternatives, none of which may hide another.
Not for: chat's form, where each token has its bytes (`miudo.serve.openai.chat`).
Read next: `miudo.serve.answering.TokenChance`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from miudo.protocol import Tokenizer
from miudo.serve.answering import TokenChance
from miudo.text.stream import TextStream

__all__ = ["Listing"]


class Listing:
    """Lists the tokens of one choice as they come; `after` is what stands before them."""

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        self._tokenizer, self._place = tokenizer, 0
        self._stream = TextStream(tokenizer, after=after)

    def take(self, chances: Sequence[TokenChance]) -> dict[str, Any]:
        """Returns the lists for the next tokens; one without a log-probability (NaN) has none.

        Tokens that share a character begin where it does.
        """
        unknown = [math.isnan(c.logprob) for c in chances]
        return {
            "tokens": [self._text(c.token) for c in chances],
            "token_logprobs": [
                None if no else c.logprob for c, no in zip(chances, unknown, strict=True)
            ],
            "top_logprobs": [
                None if no else self._named(c.top) for c, no in zip(chances, unknown, strict=True)
            ],
            "text_offset": [self._offset(c.token) for c in chances],
        }

    def _offset(self, token: int) -> int:
        place = self._place
        self._place += len(self._stream.push(token))
        return place

    def _text(self, token: int) -> str:
        return self._tokenizer.token_bytes(token).decode("utf-8", "replace")

    def _named(self, top: Sequence[tuple[int, float]]) -> dict[str, float]:
        """Keys by text; as `token_id:N`, vLLM's form, what has no whole text of its own."""
        named: dict[str, float] = {}
        for token, logprob in top:
            raw = self._tokenizer.token_bytes(token)
            text = raw.decode("utf-8", "replace")
            whole = raw != b"" and text.encode() == raw and text not in named
            named[text if whole else f"token_id:{token}"] = logprob
        return named
