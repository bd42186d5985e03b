"""A prompt as completions and embeddings take it: a text, ids, or a list of either.

For: the ids of each, checked one by one.
Not for: messages (`miudo.serve.openai.chat`).
Read next: `miudo.serve.fields`.
"""

from __future__ import annotations

from typing import Any

from miudo.serve.fields import FieldError, Fields
from miudo.serve.hosted import Hosted

__all__ = ["take_prompts"]


def take_prompts(
    fields: Fields, field: str, hosted: Hosted, *, most: int
) -> tuple[tuple[int, ...], ...]:
    """Returns the ids of up to `most` texts. Raises FieldError, naming the one that is wrong."""
    given = fields.take(field)
    if isinstance(given, str):
        return (_text_ids(hosted, given, field),)
    if not isinstance(given, list) or not given:
        raise FieldError(field, "is no text and no list", remedy="Give a text, or a list of ids")
    if all(type(item) is int for item in given):
        return (_ids(given, hosted, field),)
    if len(given) > most:
        raise FieldError(field, f"has {len(given)} texts, the limit is {most}")
    prompts = []
    for i, item in enumerate(given):
        where = f"{field}[{i}]"
        if isinstance(item, str):
            prompts.append(_text_ids(hosted, item, where))
        elif isinstance(item, list) and item:
            prompts.append(_ids(item, hosted, where))
        else:
            raise FieldError(where, "is no text and no list of ids")
    return tuple(prompts)


def _text_ids(hosted: Hosted, text: str, where: str) -> tuple[int, ...]:
    if not text:
        raise FieldError(where, "is empty", remedy="Give some text")
    return tuple(hosted.text_ids(text))


def _ids(values: list[Any], hosted: Hosted, where: str) -> tuple[int, ...]:
    size = hosted.loaded.tokenizer.vocab_size
    for value in values:
        if type(value) is not int or not 0 <= value < size:
            raise FieldError(
                where, f"has the id {value!r:.50}", remedy=f"Give ids from 0 to {size - 1}"
            )
    return tuple(values)
