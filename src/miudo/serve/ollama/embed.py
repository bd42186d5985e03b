"""`/api/embed`: texts in, a vector for each out.

For: the request's fields and the reply's shape.
Not for: making the vectors (`miudo.serve.embedding`).
Read next: `miudo.serve.embedding`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from miudo.serve.embedding import MAX_TEXTS, check_lengths, embedded, take_dimensions
from miudo.serve.fields import FieldError, Fields
from miudo.serve.hosted import Hosted
from miudo.serve.ollama.options import take_keep_alive

__all__ = ["EmbedCall", "embed_reply", "parse_embed"]


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """A request that was read; `began` is a time of `perf_counter`."""

    hosted: Hosted
    texts: tuple[tuple[int, ...], ...]
    began: float = field(default_factory=time.perf_counter)


def parse_embed(fields: Fields, hosted: Hosted) -> EmbedCall:
    """Returns the call. A text that is too long is cut only where `truncate` is true."""
    given = fields.texts("input", MAX_TEXTS)
    if not given:
        raise FieldError("input", "is missing or empty", remedy="Give a text, or a list of texts")
    truncate = fields.flag("truncate")
    if truncate:  # a character is a byte or more
        given = tuple(text.encode()[: hosted.most_bytes].decode(errors="ignore") for text in given)
    texts = tuple(tuple(hosted.text_ids(text)) for text in given)
    if truncate:
        texts = tuple(ids[: hosted.context] for ids in texts)
    check_lengths("input", hosted, texts)
    take_dimensions(fields, hosted)
    take_keep_alive(fields)
    fields.refuse({"options": {}})
    fields.end()
    return EmbedCall(hosted, texts)


async def embed_reply(call: EmbedCall) -> dict[str, Any]:
    """Returns the whole reply, in the order of the texts."""
    vectors = await embedded(call.hosted, call.texts)
    return {
        "model": call.hosted.name,
        "embeddings": [[float(value) for value in vector] for vector in vectors],
        "total_duration": round((time.perf_counter() - call.began) * 1e9),
        "load_duration": 0,
        "prompt_eval_count": sum(map(len, call.texts)),
    }
