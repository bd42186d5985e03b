"""Vectors of the texts of a request, made between the engine's steps.

For: every protocol that embeds.
Not for: pooling (`miudo.engine.embedding`) or a protocol's JSON.
Read next: `miudo.engine.embedding`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from miudo.engine.embedding import Embedder, Pooling
from miudo.protocol import Engine, FloatArray
from miudo.serve.fields import FieldError, Fields
from miudo.serve.hosted import Hosted

__all__ = ["MAX_TEXTS", "check_lengths", "embedded", "take_dimensions"]

MAX_TEXTS = 2048


def take_dimensions(fields: Fields, hosted: Hosted) -> None:
    """Takes `dimensions`. Raises FieldError for another number than the vectors have."""
    width = hosted.loaded.model.config.d_model
    if fields.whole("dimensions", 1, 1 << 31, width) != width:
        raise FieldError(
            "dimensions", f"cannot be chosen, the vectors have {width}", remedy="Leave it out"
        )


def check_lengths(field: str, hosted: Hosted, texts: Sequence[Sequence[int]]) -> None:
    """Raises FieldError with both counts for a text that the model has no room for."""
    for i, ids in enumerate(texts):
        if len(ids) > hosted.context:
            raise FieldError(
                f"{field}[{i}]",
                f"has {len(ids)} tokens, the model has {hosted.context} positions",
                remedy="Shorten it",
            )


async def embedded(
    hosted: Hosted, texts: Sequence[Sequence[int]], pooling: Pooling = "mean"
) -> list[FloatArray]:
    """Returns a vector for each text; between two of them other requests have their steps."""
    weights, adapter = hosted.loaded.model.weights, hosted.loaded.adapter
    vectors = []
    for ids in texts:

        def work(engine: Engine, ids: Sequence[int] = ids) -> FloatArray:
            return Embedder(engine, weights, adapter=adapter).embed(ids, pooling)

        vectors.append(await asyncio.wrap_future(hosted.worker.call(work, positions=len(ids))))
    return vectors
