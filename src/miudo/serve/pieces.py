"""A token as JSON shows it.

For: every reply that lists tokens one by one, in llama.cpp's form.
Not for: running text, where tokens that cut a character are put together (`miudo.text.stream`).
Read next: `miudo.serve.text.tools`.
"""

from __future__ import annotations

from miudo.protocol import Tokenizer

__all__ = ["shown_piece"]


def shown_piece(tokenizer: Tokenizer, token: int) -> str | list[int]:
    """Returns a token's text, or its bytes where they are no whole text; "" for special ones."""
    given = tokenizer.token_bytes(token)
    try:
        return given.decode()
    except UnicodeDecodeError:
        return list(given)
