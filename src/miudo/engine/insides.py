"""What a model does on the way to its answer: attention rows, and what each layer would say.

For: looking on: attention by layer and head, and the logit lens (nostalgebraist 2020), which puts
every layer's state through the final norm and the head. Both are bounded, and refused with what
was asked and what is allowed.
Not for: the ordinary path, which pays nothing for this; training on such signals
(`miudo.compress.distill`).
Read next: `miudo.protocol`, `native/core/unembed.cc`.

Shapes: T positions, L layers, H query heads, D d_model, V vocab_size, K best ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miudo.errors import RequestError
from miudo.protocol import Engine, FloatArray, SeqWork, StepOut, Want

__all__ = [
    "MOST_ATTENTION",
    "MOST_POSITIONS",
    "MOST_STATES",
    "LensRow",
    "attention_rows",
    "hidden_states",
    "lens_row",
]

MOST_POSITIONS = 256
"""Positions of one look: what a server's step takes in, so that nobody waits longer for it."""

MOST_ATTENTION = 1 << 24
"""Numbers of attention that one look computes, positions x positions x heads: 64 MB."""

MOST_STATES = 1 << 12
"""States that one lens puts through the head, positions x (layers + 1)."""

_CHUNK = 1 << 21  # logits held at once, as float64 beside float32: 24 MB

_LEAST = -1e4  # of a log-probability in a sum: what is impossible adds nothing
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LensRow:
    """What one layer would say at T positions, in nats.

    `top_ids` and `top_logprobs` are [T, K], most probable first; `entropy` [T] is that of the
    distribution. `logprobs` [T - 1] and `ranks` [T - 1] (0: the most probable) are of the token
    that does come next.
    """

    top_ids: _Ints
    top_logprobs: FloatArray
    entropy: FloatArray
    logprobs: FloatArray
    ranks: _Ints


def attention_rows(
    engine: Engine, ids: Sequence[int], *, adapter: str | None = None
) -> tuple[FloatArray, ...]:
    """Returns for each layer [H, T, T]: what each position (row) takes from each before it.

    A row sums to 1. Raises RequestError beyond MOST_POSITIONS or MOST_ATTENTION.
    """
    config, n = engine.config, len(ids)
    heads = sum(layer.n_heads for layer in config.layers)
    _check_positions(n)
    if n * n * heads > MOST_ATTENTION:
        raise RequestError(
            f"{n} x {n} positions of {heads} heads in {config.n_layers} layers are "
            f"{n * n * heads:,} numbers, the limit is {MOST_ATTENTION:,}",
            remedy=f"Give at most {math.isqrt(MOST_ATTENTION // heads)} tokens",
        )
    found = _look(engine, ids, Want.ATTENTION, adapter).attention
    return found if found is not None else ()


def hidden_states(engine: Engine, ids: Sequence[int], *, adapter: str | None = None) -> FloatArray:
    """Returns [L + 1, T, D]: the residual stream before each layer and after the last.

    Raises RequestError beyond MOST_POSITIONS or MOST_STATES.
    """
    n, states = len(ids), engine.config.n_layers + 1
    _check_positions(n)
    if n * states > MOST_STATES:
        raise RequestError(
            f"{n} positions in {states} states are {n * states:,}, the limit is {MOST_STATES:,}",
            remedy=f"Give at most {MOST_STATES // states} tokens",
        )
    found = _look(engine, ids, Want.HIDDEN, adapter).hidden
    return found if found is not None else np.empty((0, n, engine.config.d_model), np.float32)


def lens_row(
    engine: Engine, hidden: FloatArray, ids: Sequence[int], *, top: int, n_tokens: int
) -> LensRow:
    """Returns what the states [T, D] of one layer say, a few positions at a time.

    `n_tokens` is the tokenizer's: rows of the vocabulary beyond are no tokens and never among
    the best, though they have their share of probability, as everywhere.
    """
    parts = []
    following = np.asarray([*ids[1:], ids[-1]], np.int64)  # the last one's is cut off below
    chunk = max(1, _CHUNK // engine.config.vocab_size)
    for at in range(0, len(hidden), chunk):
        logits = engine.unembed(hidden[at : at + chunk])
        parts.append(_read(logits, following[at : at + chunk], top, n_tokens))
    ids_, best, entropy, logprobs, ranks = (np.concatenate(x) for x in zip(*parts, strict=True))
    return LensRow(ids_, best, entropy, logprobs[:-1], ranks[:-1])


def _read(
    logits: FloatArray, following: _Ints, top: int, n_tokens: int
) -> tuple[_Ints, FloatArray, FloatArray, FloatArray, _Ints]:
    values = logits.astype(np.float64)
    values -= values.max(1, keepdims=True)
    values -= np.log(np.exp(values).sum(1, keepdims=True))  # log-probabilities from here on
    rows = np.arange(len(values))
    shown = values[:, :n_tokens]
    some = np.argpartition(-shown, min(top, n_tokens) - 1, axis=1)[:, :top]
    order = np.lexsort((some, -np.take_along_axis(shown, some, 1)))
    best = np.take_along_axis(some, order, 1)
    own = values[rows, following]
    return (
        best,
        _f32(np.take_along_axis(shown, best, 1)),
        _f32(-(np.exp(values) * np.maximum(values, _LEAST)).sum(1)),
        _f32(own),
        (values > own[:, None]).sum(1),
    )


def _f32(values: npt.NDArray[np.float64]) -> FloatArray:
    return values.astype(np.float32)


def _look(engine: Engine, ids: Sequence[int], want: Want, adapter: str | None) -> StepOut:
    """Takes `ids` in, in a conversation of its own."""
    conversation = engine.open()
    try:
        return engine.step([SeqWork(conversation, ids, want, adapter=adapter)])[0]
    finally:
        engine.close(conversation)


def _check_positions(n: int) -> None:
    if n > MOST_POSITIONS:
        raise RequestError(
            f"{n} positions, the limit is {MOST_POSITIONS}", remedy="Give a shorter text"
        )
