"""Log-probabilities of texts that may follow a prompt, from any Engine.

For: choices that share a prompt, which is taken in once for all of them.
Not for: whole documents (`miudo.evaluate.perplexity`).
Read next: `miudo.evaluate.harness`.

One way for all tasks: the prompt by `Engine.step`, each choice after it, `truncate` between them.
On the embedded model that takes a third of the time of `Engine.score` on each whole text for 77
labels, and a third more for BLiMP's pairs, which share the start id alone
(`benchmarks/choice_scoring.py`, docs/log.md). `score` would also refuse a text of one id more than
the model's positions, whose last id is never taken in.

Shapes: T ids of a choice, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import numpy.typing as npt

from miudo.config import ModelConfig
from miudo.errors import DataError, RequestError
from miudo.evaluate.perplexity import start_id
from miudo.protocol import Engine, FloatArray, SeqWork, Tokenizer, Want

__all__ = ["Continuation", "Pair", "encode_pair", "score_pairs"]

_MAX_CHUNK_VALUES = 1 << 22
"""T x V of one chunk of logits: some 16 MB, whatever the vocabulary."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Ids of a prompt and of what follows it; `cut` ids of the prompt were too many and fell."""

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Continuation:
    """`logprob` is the sum in nats over the continuation's ids.

    `greedy`: each of them is the model's most probable one (of equals, the lowest id).
    """

    logprob: float
    greedy: bool


def encode_pair(prompt: str, continuation: str, tokenizer: Tokenizer, config: ModelConfig) -> Pair:
    """Returns the ids of both, parted as lm-evaluation-harness parts them (`_encode_pair`).

    Spaces at the prompt's end go over to the continuation; both are encoded together, and the
    continuation's ids are what the whole has after as many ids as the prompt alone has. The
    model's start id stands first, as in `perplexity`; without one, an empty prompt takes over the
    continuation's first id, which is then not scored. Ids beyond the model's positions are cut
    off on the left. Raises DataError where the continuation has no id of its own, or too many;
    its `what` is the reason alone, alike for every such pair of a model.
    """
    start = start_id(config)
    first = [] if start is None else [start]
    bare = prompt.rstrip()
    whole = first + tokenizer.encode(prompt + continuation)
    before = first + tokenizer.encode(bare)
    before = before or whole[:1]
    after = whole[len(before) :]
    if not after:
        raise DataError(
            "a choice has no token of its own after the prompt", where=repr(continuation[:60])
        )
    if len(after) > config.max_positions:
        raise DataError(
            f"a choice is longer than the model's {config.max_positions} positions",
            where=repr(continuation[:60]),
        )
    # The last id is predicted and never taken in.
    cut = max(0, len(before) + len(after) - 1 - config.max_positions)
    return Pair(tuple(before[cut:]), tuple(after), cut)


def score_pairs(
    engine: Engine, pairs: Iterable[Pair], *, adapter: str | None = None
) -> list[Continuation]:
    """Returns each pair's log-probability, in order; neighbours with one prompt share its cost.

    A log-probability that is not finite is handed on: what it means is the caller's to say.
    `adapter` names one that the engine was given.
    """
    found: list[Continuation] = []
    for prompt, group in groupby(pairs, key=lambda pair: pair.prompt):
        conversation = engine.open()
        try:
            work = SeqWork(conversation, prompt, Want.LAST_LOGITS, adapter=adapter)
            first = _logits(engine, work)[None]  # 1 V
            for pair in group:
                found.append(_continuation(engine, work, first, pair.continuation))
                engine.truncate(conversation, len(prompt))
        finally:
            engine.close(conversation)
    return found


def _continuation(
    engine: Engine, prompt: SeqWork, first: FloatArray, ids: Sequence[int]
) -> Continuation:
    parts: list[npt.NDArray[np.float64]] = []
    greedy = True
    at = 0
    for logits in _chunks(engine, prompt, first, ids):
        wanted = np.asarray(ids[at : at + len(logits)])
        parts.append(_log_softmax_at(logits, wanted))
        greedy = greedy and bool((logits.argmax(axis=-1) == wanted).all())
        at += len(logits)
    return Continuation(float(np.concatenate(parts).sum()), greedy)


def _chunks(
    engine: Engine, prompt: SeqWork, first: FloatArray, ids: Sequence[int]
) -> Iterator[FloatArray]:
    """Yields logits [T, V] that predict `ids`, the first of which follow from the prompt.

    All after the first are taken in as `prompt` was: its conversation, its adapter.
    """
    yield first
    size = max(1, _MAX_CHUNK_VALUES // engine.config.vocab_size)
    taken = ids[:-1]
    for begin in range(0, len(taken), size):
        part = taken[begin : begin + size]
        yield _logits(engine, replace(prompt, ids=part, want=Want.ALL_LOGITS))


def _logits(engine: Engine, work: SeqWork) -> FloatArray:
    logits = engine.step([work])[0].logits
    if logits is None:
        raise RequestError("the engine returned no logits")
    return logits


def _log_softmax_at(logits: FloatArray, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Returns log softmax at one id a row, [T]; exponentials in float32, sums in float64."""
    with np.errstate(invalid="ignore"):  # inf - inf: the result is NaN, and the caller says so
        shifted = logits - logits.max(axis=-1, keepdims=True)  # T V
        total = np.log(np.exp(shifted).sum(axis=-1, dtype=np.float64))
    at: npt.NDArray[np.float64] = shifted[np.arange(len(ids)), ids].astype(np.float64)
    log_p: npt.NDArray[np.float64] = at - total
    return log_p
