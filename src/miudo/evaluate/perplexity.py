"""Perplexity and bits per byte of a model on documents, by a sliding window.

For: one number from any Engine, each token scored exactly once, context and stride stated.
Not for: comparing models of different tokenizers by perplexity: bits per byte is for that.
Read next: `miudo.evaluate.divergence`, `miudo.evaluate.compare`.

The windows are those of Baevski and Auli (2019): stride below context gives every token but
the first ones at least `context - stride` ids before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miudo.config import ModelConfig
from miudo.errors import CheckFailedError, DataError, UsageError
from miudo.protocol import Engine, Tokenizer

__all__ = [
    "Perplexity",
    "Window",
    "default_window",
    "document_ids",
    "domain_perplexities",
    "perplexity",
    "start_id",
    "windows",
]

_MAX_DEFAULT_CONTEXT = 1024


@dataclass(frozen=True, slots=True)
class Perplexity:
    """`nll` is the mean in nats per token, `ppl` its exponential.

    `ppl_error` is one standard error of `ppl`, tokens taken as independent. `bits_per_byte`
    divides by the UTF-8 bytes of the text. Tokens and bytes are those that were scored.
    """

    ppl: float
    ppl_error: float
    bits_per_byte: float
    nll: float
    tokens: int
    bytes: int
    documents: int
    context: int
    stride: int
    start: int | None


@dataclass(frozen=True, slots=True)
class Window:
    """Ids `begin:end` go in together; those from `first` on are scored."""

    begin: int
    end: int
    first: int


def windows(n: int, context: int, stride: int) -> Iterator[Window]:
    """Yields windows over `n` ids that score each of 1 … n-1 exactly once.

    A window holds at most `context` ids, at least `context - stride` of them before its first
    scored id except in the first window. Raises UsageError unless 1 <= stride < context.
    """
    if not 1 <= stride < context:
        raise UsageError(
            f"stride is {stride} and context {context}, allowed 1 <= stride < context",
            remedy="Set --stride to half of --context",
        )
    end = min(n, context)
    if end > 1:
        yield Window(0, end, 1)
    while end < n:
        first, end = end, min(n, end + stride)
        yield Window(max(0, end - context), end, first)


def default_window(config: ModelConfig) -> tuple[int, int]:
    """Returns (context, stride): the model's positions, at most 1,024, and half of that."""
    context = min(config.max_positions, _MAX_DEFAULT_CONTEXT)
    return context, max(1, context // 2)


def start_id(config: ModelConfig) -> int | None:
    """Returns the id that stands before a document: bos, else the first eos, else None."""
    if config.bos_id is not None:
        return config.bos_id
    return config.eos_ids[0] if config.eos_ids else None


def document_ids(text: str, tokenizer: Tokenizer, config: ModelConfig) -> list[int]:
    """Returns the document's ids after the model's start id, where it has one."""
    start = start_id(config)
    return ([] if start is None else [start]) + tokenizer.encode(text)


def perplexity(
    engine: Engine,
    tokenizer: Tokenizer,
    documents: Iterable[str],
    *,
    context: int | None = None,
    stride: int | None = None,
    adapter: str | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Perplexity:
    """Returns how well `engine` predicts `documents`, each on its own.

    A document starts after the model's start id and its end is not scored. Without a start
    id its first token cannot be scored, and its bytes are left out too. `adapter` names one that
    the engine was given.
    Raises DataError if nothing can be scored, CheckFailedError if a log-probability is not
    finite, UsageError for a context beyond the model's positions.
    """
    whole = domain_perplexities(
        engine,
        tokenizer,
        {(): documents},
        context=context,
        stride=stride,
        adapter=adapter,
        progress=progress,
    )
    return whole[()]


def domain_perplexities(
    engine: Engine,
    tokenizer: Tokenizer,
    domains: Mapping[tuple[str, ...], Iterable[str]],
    *,
    context: int | None = None,
    stride: int | None = None,
    adapter: str | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[tuple[str, ...], Perplexity]:
    """Returns `perplexity` of each domain by its name, and of each group of domains.

    A name may have a group's name before its own: ("news", "2024") counts in ("news",) too, and
    all domains in (), which comes first. A domain without anything to score raises as soon as it
    was read.
    """
    window = _checked_window(engine.config, context, stride)
    found: dict[tuple[str, ...], _Losses] = {(): _Losses([], 0)}
    done = 0

    def tell(tokens: int) -> None:
        progress(done + tokens)

    for name, documents in domains.items():
        part = _measured(engine, tokenizer, documents, window, adapter, tell)
        if not part.losses or part.bytes < 1:
            raise _nothing(name)
        done += sum(losses.size for losses in part.losses)
        for length in range(len(name) + 1):
            group = found.setdefault(name[:length], _Losses([], 0))
            group.losses.extend(part.losses)
            group.bytes += part.bytes
    if not domains:
        raise _nothing(())
    return {name: _summary(losses, window, engine) for name, losses in found.items()}


@dataclass(slots=True)
class _Losses:
    """Losses in nats, a document each, and the bytes of the text that they are of."""

    losses: list[npt.NDArray[np.float64]]
    bytes: int


def _measured(
    engine: Engine,
    tokenizer: Tokenizer,
    documents: Iterable[str],
    window: tuple[int, int],
    adapter: str | None,
    progress: Callable[[int], None],
) -> _Losses:
    start = start_id(engine.config)
    losses: list[npt.NDArray[np.float64]] = []
    n_bytes, n_tokens = 0, 0
    for index, text in enumerate(documents):
        ids = document_ids(text, tokenizer, engine.config)
        if len(ids) < 2:
            continue
        scored = _document_losses(engine, ids, window, adapter, index)
        losses.append(scored)
        skipped = len(tokenizer.token_bytes(ids[0])) if start is None else 0
        n_bytes += len(text.encode()) - skipped
        n_tokens += scored.size
        progress(n_tokens)
    return _Losses(losses, n_bytes)


def _checked_window(
    config: ModelConfig, context: int | None, stride: int | None
) -> tuple[int, int]:
    if context is None:
        context = default_window(config)[0]
    if stride is None:
        stride = max(1, context // 2)
    if not 2 <= context <= config.max_positions:
        raise UsageError(
            f"context is {context}, this model takes 2 to {config.max_positions}",
            remedy="Give another --context",
        )
    return context, stride


def _document_losses(
    engine: Engine,
    ids: Sequence[int],
    sizes: tuple[int, int],
    adapter: str | None,
    index: int,
) -> npt.NDArray[np.float64]:
    parts: list[npt.NDArray[np.float64]] = []
    for window in windows(len(ids), *sizes):
        scores = engine.score(ids[window.begin : window.end], adapter=adapter)
        logprobs = scores.logprobs  # [T - 1]
        parts.append(-logprobs[window.first - window.begin - 1 :].astype(np.float64))
    losses = np.concatenate(parts)
    if not np.isfinite(losses).all():
        at = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise CheckFailedError(
            f"the log-probability of token {at} of document {index} is {-losses[at]}",
            remedy="The model's weights or its context are broken; check it with `miudo show`",
        )
    return losses


def _nothing(name: tuple[str, ...]) -> DataError:
    return DataError(
        "no text to score",
        where=", ".join(name) or None,
        remedy="Give documents of at least two tokens",
    )


def _summary(measured: _Losses, window: tuple[int, int], engine: Engine) -> Perplexity:
    losses = np.concatenate(measured.losses)
    total = math.fsum(losses.tolist())
    mean = total / losses.size
    error = float(losses.std()) / math.sqrt(losses.size)
    ppl = math.exp(min(mean, 700.0))  # beyond 700 a double overflows, and nobody can tell
    context, stride = window
    return Perplexity(
        ppl=ppl,
        ppl_error=ppl * error,
        bits_per_byte=total / math.log(2) / measured.bytes,
        nll=mean,
        tokens=int(losses.size),
        bytes=measured.bytes,
        documents=len(measured.losses),
        context=context,
        stride=stride,
        start=start_id(engine.config),
    )
