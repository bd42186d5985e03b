"""Log-probabilities of texts that may follow a prompt, from any Engine.

For: choices that share a prompt, which is taken in once for all of them.
Not for: whole documents (`miudo.evaluate.perplexity`).
Read next: `miudo.evaluate.harness`.

One way for all tasks: the prompt by `Engine.step`, then its choices in forks of its conversation,
several to a step, so that the weights are read once for them all. `Engine.score` on each whole text
takes longer (`benchmarks/choice_scoring.py`, docs/log.md), and refuses a text of one id more than
the model's positions, whose last id is never taken in.

Shapes: T ids of a choice, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import numpy.typing as npt

from miudo.config import ModelConfig
from miudo.errors import DataError, RequestError
from miudo.evaluate.perplexity import start_id
from miudo.protocol import Engine, FloatArray, SeqWork, StepOut, Tokenizer, Want

__all__ = ["Continuation", "Pair", "encode_pair", "score_pairs"]

_MAX_CHUNK_VALUES = 1 << 22
"""T x V of one step's logits: some 16 MB, whatever the vocabulary."""

_TOGETHER = 16
"""Choices of one step: each takes pages of keys and values, and more are hardly faster."""


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
    rows = max(1, _MAX_CHUNK_VALUES // engine.config.vocab_size)
    for prompt, group in groupby(pairs, key=lambda pair: pair.prompt):
        conversation = engine.open()
        try:
            work = SeqWork(conversation, prompt, Want.LAST_LOGITS, adapter=adapter)
            first = _logits(engine.step([work])[0])[None]  # 1 V
            for batch in _batches((pair.continuation for pair in group), rows):
                sums = [_Sum(ids) for ids in batch]
                for choice in sums:
                    choice.add(first)
                _take_in(engine, work, [choice for choice in sums if choice.missing], rows)
                found += [choice.result() for choice in sums]
        finally:
            engine.close(conversation)
    return found


class _Sum:
    """The log-probabilities of one choice's ids, as the logits that predict them come."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self._parts: list[npt.NDArray[np.float64]] = []
        self._greedy = True
        self._done = 0

    @property
    def missing(self) -> Sequence[int]:
        """The ids whose logits predict what has no log-probability yet."""
        return self.ids[self._done - 1 : -1]

    def add(self, logits: FloatArray) -> None:
        """Takes the next logits, [T, V]."""
        wanted = np.asarray(self.ids[self._done : self._done + len(logits)])
        self._parts.append(_log_softmax_at(logits, wanted))
        self._greedy = self._greedy and bool((logits.argmax(axis=-1) == wanted).all())
        self._done += len(logits)

    def result(self) -> Continuation:
        return Continuation(float(np.concatenate(self._parts).sum()), self._greedy)


def _batches(choices: Iterable[Sequence[int]], rows: int) -> Iterator[list[Sequence[int]]]:
    """Yields neighbours for one step: few, and of no more than `rows` logits, or one alone."""
    batch: list[Sequence[int]] = []
    taken = 0
    for ids in choices:
        if batch and (len(batch) == _TOGETHER or taken + len(ids) - 1 > rows):
            yield batch
            batch, taken = [], 0
        batch.append(ids)
        taken += len(ids) - 1
    yield batch


def _take_in(engine: Engine, prompt: SeqWork, choices: Sequence[_Sum], rows: int) -> None:
    """Adds to each choice the logits after the first, which followed from the prompt."""
    with ExitStack() as forks:
        works = []
        for _ in choices:
            fork = engine.fork(prompt.conversation, len(prompt.ids))
            forks.callback(engine.close, fork)
            works.append(replace(prompt, conversation=fork, want=Want.ALL_LOGITS))
        # One step, but for a choice alone of more than `rows`.
        while any(choice.missing for choice in choices):
            parts = [
                replace(work, ids=choice.missing[:rows])
                for work, choice in zip(works, choices, strict=True)
            ]
            for choice, out in zip(choices, engine.step(parts), strict=True):
                choice.add(_logits(out))


def _logits(out: StepOut) -> FloatArray:
    if out.logits is None:
        raise RequestError("the engine returned no logits")
    return out.logits


def _log_softmax_at(logits: FloatArray, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Returns log softmax at one id a row, [T]; exponentials in float32, sums in float64."""
    with np.errstate(invalid="ignore"):  # inf - inf: the result is NaN, and the caller says so
        shifted = logits - logits.max(axis=-1, keepdims=True)  # T V
        total = np.log(np.exp(shifted).sum(axis=-1, dtype=np.float64))
    at: npt.NDArray[np.float64] = shifted[np.arange(len(ids)), ids].astype(np.float64)
    log_p: npt.NDArray[np.float64] = at - total
    return log_p
