"""`/v1/embeddings`: texts in, a vector for each out.

For: the request's fields and the reply's shape.
Not for: making the vectors (`miudo.serve.embedding`).
Read next: `miudo.serve.embedding`.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from miudo.engine.embedding import POOLINGS, Pooling
from miudo.protocol import FloatArray
from miudo.serve.embedding import MAX_TEXTS, check_lengths, embedded, take_dimensions
from miudo.serve.fields import Fields
from miudo.serve.hosted import Hosted
from miudo.serve.openai.prompts import take_prompts

__all__ = ["EmbeddingCall", "embedding_reply", "parse_embedding"]


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    """A request that was read: the ids of each text, and how its vector is made and written."""

    hosted: Hosted
    texts: tuple[tuple[int, ...], ...]
    pooling: Pooling
    base64: bool


def parse_embedding(fields: Fields, hosted: Hosted) -> EmbeddingCall:
    """Returns the call. Raises FieldError."""
    texts = take_prompts(fields, "input", hosted, most=MAX_TEXTS)
    check_lengths("input", hosted, texts)
    written = fields.choice("encoding_format", ("float", "base64"), "float")
    pooling = cast(Pooling, fields.choice("pooling", POOLINGS, "mean"))
    take_dimensions(fields, hosted)
    fields.ignore("user")
    fields.end()
    return EmbeddingCall(hosted, texts, pooling, written == "base64")


async def embedding_reply(call: EmbeddingCall) -> dict[str, Any]:
    """Returns the whole reply, in the order of the texts."""
    vectors = await embedded(call.hosted, call.texts, call.pooling)
    read = sum(map(len, call.texts))
    return {
        "object": "list",
        "model": call.hosted.name,
        "data": [
            {"object": "embedding", "index": i, "embedding": _written(call, vector)}
            for i, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": read, "total_tokens": read},
    }


def _written(call: EmbeddingCall, vector: FloatArray) -> str | list[float]:
    """Returns the numbers, or their bytes as float32, the lowest first, in base64."""
    if not call.base64:
        return [float(value) for value in vector]
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
