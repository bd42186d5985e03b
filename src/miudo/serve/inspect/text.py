"""The text that is looked at, and its tokens as a reply shows them.

For: what attention and lens have in common.
Not for: cutting text without looking inside (`/tokenize`).
Read next: `miudo.serve.inspect.attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from miudo.serve.fields import FieldError, Fields
from miudo.serve.hosted import Hosted
from miudo.serve.pieces import shown_piece

__all__ = ["shown_tokens", "take_ids"]


def take_ids(fields: Fields, hosted: Hosted) -> tuple[int, ...]:
    """Returns the ids of `content`, begun as the model wants, or those of `ids` as they are.

    Raises FieldError where there is neither, both, or an id that is no token.
    """
    content, ids = fields.take("content"), fields.take("ids")
    if (content is None) == (ids is None):
        raise FieldError("content", "or ids must be given, one of them", remedy="Give a text")
    if content is not None:
        if not isinstance(content, str) or not content:
            raise FieldError("content", "is no text, or empty", remedy="Give some text")
        return tuple(hosted.text_ids(content))
    size = hosted.loaded.tokenizer.vocab_size
    if not isinstance(ids, list) or not ids:
        raise FieldError("ids", "is no list, or empty", remedy="Give ids, as /tokenize gives them")
    for value in ids:
        if type(value) is not int or not 0 <= value < size:
            raise FieldError(
                "ids", f"has {value!r:.50}", remedy=f"Give whole numbers from 0 to {size - 1}"
            )
    return tuple(ids)


def shown_tokens(hosted: Hosted, ids: Sequence[int]) -> list[dict[str, Any]]:
    """Returns each token's id and piece."""
    tokenizer = hosted.loaded.tokenizer
    return [{"id": token, "piece": shown_piece(tokenizer, token)} for token in ids]
