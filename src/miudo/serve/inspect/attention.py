"""`/inspect/attention`: what each position takes from those before it, by layer and head.

For: the request's fields, bounds on the reply, its shape.
Not for: computing it (`miudo.engine.insides`).
Read next: `miudo.engine.insides`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from miudo.engine.insides import attention_rows
from miudo.protocol import FloatArray
from miudo.serve.fields import FieldError, Fields
from miudo.serve.hosted import Hosted
from miudo.serve.inspect.text import shown_tokens, take_ids

__all__ = ["MOST_SENT", "AttentionCall", "attention_reply", "parse_attention"]

MOST_SENT = 1 << 19
"""Numbers in one reply, positions x (positions + 1) / 2 x heads of the layers asked for: 5 MB."""

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """A request that was read."""

    hosted: Hosted
    ids: tuple[int, ...]
    layers: tuple[int, ...]


def parse_attention(fields: Fields, hosted: Hosted) -> AttentionCall:
    """Returns the call; without `layers` all are meant.

    Raises FieldError, with both counts where the reply would be too large.
    """
    ids = take_ids(fields, hosted)
    config = hosted.loaded.engine.config
    layers = _layers(fields.take("layers"), config.n_layers)
    fields.end()
    heads = sum(config.layers[i].n_heads for i in layers)
    numbers = len(ids) * (len(ids) + 1) // 2 * heads
    if numbers > MOST_SENT:
        raise FieldError(
            "layers",
            f"{len(ids)} tokens and {heads} heads in {len(layers)} layers are {numbers:,} numbers, "
            f"the limit of a reply is {MOST_SENT:,}",
            remedy="Ask for fewer layers, or a shorter text",
        )
    return AttentionCall(hosted, ids, layers)


async def attention_reply(call: AttentionCall) -> dict[str, Any]:
    """Returns the reply: row i of a head has the i + 1 numbers that position i may look at."""
    work = call.hosted.worker.call(
        lambda engine: attention_rows(engine, call.ids, adapter=call.hosted.loaded.adapter),
        positions=len(call.ids),
    )
    rows = await asyncio.wrap_future(work)
    config = call.hosted.loaded.engine.config
    return {
        "model": call.hosted.name,
        "tokens": shown_tokens(call.hosted, call.ids),
        "layers": await asyncio.to_thread(
            lambda: [
                {"layer": i, "window": config.layers[i].window, "heads": _triangles(rows[i])}
                for i in call.layers
            ]
        ),
    }


def _triangles(heads: FloatArray) -> list[list[list[float]]]:
    return [
        [[round(x, _DIGITS) for x in row[: i + 1]] for i, row in enumerate(head)]
        for head in heads.tolist()
    ]


def _layers(given: Any, n_layers: int) -> tuple[int, ...]:
    if given is None:
        return tuple(range(n_layers))
    wanted = f"Give different whole numbers from 0 to {n_layers - 1}"
    if not isinstance(given, list) or not given:
        raise FieldError("layers", "is no list, or empty", remedy=wanted)
    for value in given:
        if type(value) is not int or not 0 <= value < n_layers:
            raise FieldError("layers", f"has {value!r:.50}", remedy=wanted)
    if len(set(given)) != len(given):
        raise FieldError("layers", "names a layer twice", remedy=wanted)
    return tuple(given)
