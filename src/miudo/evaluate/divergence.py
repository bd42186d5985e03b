"""How far a model's next-token distributions are from another's, on the same text.

For: Kullback-Leibler divergence and agreement in the most probable token, teacher-forced.
Not for: models with different vocabularies: their distributions are not over the same things.
Read next: `miudo.evaluate.compare`.

Shapes: T positions in a chunk, V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miudo.errors import CheckFailedError, DataError, RequestError, UsageError
from miudo.protocol import Engine, SeqWork, Want

__all__ = ["Divergence", "divergence"]

_CHUNK = 64
_MAX_CHUNK_VALUES = 1 << 22
"""T x V of one chunk: some 32 MB a float64 array, whatever the vocabulary."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """`kl` is the mean KL(reference || model) in nats per position, `kl_max` the largest.

    `same_top1` is the share of positions where both have the same most probable id.
    """

    kl: float
    kl_max: float
    same_top1: float
    positions: int


def divergence(
    reference: Engine,
    model: Engine,
    documents: Iterable[Sequence[int]],
    *,
    context: int,
    adapter: str | None = None,
) -> Divergence:
    """Returns how `model` differs from `reference` on documents of ids, cut at `context`.

    `adapter` names one that both engines were given.

    All logits are compared, exactly, in chunks of at most 64 positions. Raises UsageError if
    the vocabularies differ in size, DataError without ids, CheckFailedError for logits that
    are not finite.
    """
    sizes = reference.config.vocab_size, model.config.vocab_size
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"vocabularies of {sizes[0]} and {sizes[1]} ids have no divergence",
            remedy="Compare models of one tokenizer",
        )
    kls: list[npt.NDArray[np.float64]] = []
    same = 0
    for ids in _pieces(documents, context):
        ours = _all_logits(reference, ids, adapter)
        theirs = _all_logits(model, ids, adapter)
        for p, q in zip(ours, theirs, strict=True):
            kls.append(_kl(p, q))
            same += int(np.count_nonzero(p.argmax(axis=-1) == q.argmax(axis=-1)))
    if not kls:
        raise DataError("no text to compare on", remedy="Give documents of at least one token")
    values = np.concatenate(kls)
    if not np.isfinite(values).all():
        raise CheckFailedError(
            "a divergence is not finite", remedy="Check both models with `miudo eval`"
        )
    mean = math.fsum(values.tolist()) / values.size
    return Divergence(mean, float(values.max()), same / values.size, int(values.size))


def _pieces(documents: Iterable[Sequence[int]], context: int) -> Iterator[Sequence[int]]:
    for ids in documents:
        for begin in range(0, len(ids), context):
            yield ids[begin : begin + context]


def _all_logits(
    engine: Engine, ids: Sequence[int], adapter: str | None
) -> Iterator[npt.NDArray[np.float32]]:
    """Yields logits [T, V] of successive chunks of `ids`, in a conversation of its own."""
    size = max(1, min(_CHUNK, _MAX_CHUNK_VALUES // engine.config.vocab_size))
    conversation = engine.open()
    try:
        for begin in range(0, len(ids), size):
            part = ids[begin : begin + size]
            work = SeqWork(conversation, part, Want.ALL_LOGITS, adapter=adapter)
            logits = engine.step([work])[0].logits
            if logits is None:
                raise RequestError("the engine returned no logits")
            yield logits
    finally:
        engine.close(conversation)


def _kl(p: npt.NDArray[np.float32], q: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Returns KL(softmax p || softmax q) of each row, [T]."""
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    terms: npt.NDArray[np.float64] = np.exp(log_p) * (log_p - log_q)
    # Rounding can give -1e-17 for equal rows; a divergence is never negative.
    positive: npt.NDArray[np.float64] = np.maximum(terms.sum(axis=-1), 0.0)
    return positive


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normal: npt.NDArray[np.float64] = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    log_p: npt.NDArray[np.float64] = shifted - normal
    return log_p
