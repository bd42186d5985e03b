"""The text that is looked at, and its tokens as a reply shows them.

For: what attention and lens have in common.
Not for: cutting text without looking inside (`/tokenize`).
Read next: `miudo.serve.inspect.attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from miudo.serve.fields import Fields
from miudo.serve.hosted import Hosted
from miudo.serve.openai.prompts import take_prompts
from miudo.serve.pieces import shown_piece

__all__ = ["shown_tokens", "take_ids"]


def take_ids(fields: Fields, hosted: Hosted) -> tuple[int, ...]:
    """Returns the ids of `content`: a text, begun as the model wants, or ids as they are.

    Raises FieldError for neither, or an id that is no token.
    """
    return take_prompts(fields, "content", hosted, most=1)[0]


def shown_tokens(hosted: Hosted, ids: Sequence[int]) -> list[dict[str, Any]]:
    """Returns each token's id and piece."""
    tokenizer = hosted.loaded.tokenizer
    return [{"id": token, "piece": shown_piece(tokenizer, token)} for token in ids]
