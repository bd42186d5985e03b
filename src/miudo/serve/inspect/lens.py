"""`/inspect/lens`: what each layer would say comes next, at every position.

For: the request's fields and the reply's shape.
Not for: computing it (`miudo.engine.insides`).
Read next: `miudo.engine.insides`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from miudo.engine.insides import LensRow, hidden_states, lens_row
from miudo.protocol import FloatArray
from miudo.serve.fields import Fields
from miudo.serve.hosted import Hosted
from miudo.serve.inspect.text import shown_tokens, take_ids
from miudo.serve.pieces import shown_piece

__all__ = ["LensCall", "lens_reply", "parse_lens"]

_MOST_TOP = 20
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class LensCall:
    """A request that was read."""

    hosted: Hosted
    ids: tuple[int, ...]
    top: int


def parse_lens(fields: Fields, hosted: Hosted) -> LensCall:
    """Returns the call. Raises FieldError."""
    ids = take_ids(fields, hosted)
    top = fields.whole("top", 1, _MOST_TOP, 5)
    fields.end()
    return LensCall(hosted, ids, min(top, hosted.loaded.tokenizer.vocab_size))


async def lens_reply(call: LensCall) -> dict[str, Any]:
    """Returns the reply; "layers" has the embedding first, then each layer's state.

    The engine is asked layer by layer: other requests have their steps between.
    """
    worker = call.hosted.worker
    states = await asyncio.wrap_future(
        worker.call(
            lambda engine: hidden_states(engine, call.ids, adapter=call.hosted.loaded.adapter),
            positions=len(call.ids),
        )
    )
    layers = []
    for i, state in enumerate(states):
        row = await _row(call, state)
        layers.append({"layer": i, "cells": _cells(call, row)})
    return {
        "model": call.hosted.name,
        "tokens": shown_tokens(call.hosted, call.ids),
        "layers": layers,
    }


async def _row(call: LensCall, state: FloatArray) -> LensRow:
    n_tokens = call.hosted.loaded.tokenizer.vocab_size
    return await asyncio.wrap_future(
        call.hosted.worker.call(
            lambda engine: lens_row(engine, state, call.ids, top=call.top, n_tokens=n_tokens)
        )
    )


def _cells(call: LensCall, row: LensRow) -> list[dict[str, Any]]:
    entropy, costs = row.entropy.tolist(), row.logprobs.tolist()
    cells = []
    for i, (ids, logprobs) in enumerate(
        zip(row.top_ids.tolist(), row.top_logprobs.tolist(), strict=True)
    ):
        comes = None
        if i < len(costs):
            comes = {"logprob": round(costs[i], _DIGITS), "rank": int(row.ranks[i])}
        cells.append(
            {"entropy": round(entropy[i], _DIGITS), "next": comes, "top": _top(call, ids, logprobs)}
        )
    return cells


def _top(call: LensCall, ids: Sequence[int], logprobs: Sequence[float]) -> list[dict[str, Any]]:
    tokenizer = call.hosted.loaded.tokenizer
    return [
        {"id": token, "piece": shown_piece(tokenizer, token), "logprob": round(value, _DIGITS)}
        for token, value in zip(ids, logprobs, strict=True)
    ]
