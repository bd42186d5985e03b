"""From prompt ids to text that arrives piece by piece, on an event loop.

For: what every protocol needs: text without half characters, stop strings, log-probabilities,
timings, and a request that ends when its client goes.
Not for: any protocol's JSON (`miudo.serve.openai`), or threads (`miudo.serve.worker`).
Read next: `miudo.serve.worker`.

Shapes: V vocab_size.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from miudo.engine.batches import Guide, Progress, Request
from miudo.errors import MiudoError, RequestError
from miudo.meter import Energy
from miudo.protocol import FloatArray, SamplingSettings, Tokenizer
from miudo.serve.errand import current_errand
from miudo.serve.worker import Worker
from miudo.text.stream import TextStream

__all__ = ["Answer", "Ask", "Piece", "Timings", "TokenChance", "answer", "chances"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What to go on with, how long, and how to draw.

    `top` asks for log-probabilities: of each token and so many others; None: of none.
    `scope` is whose cache may be begun with; `deadline_s` counts from when it is asked, and the
    request's own deadline holds beside it. `shown` are special tokens that the text is to
    hold, and their bytes.
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stop: tuple[str, ...] = ()
    eos_ids: tuple[int, ...] = ()
    top: int | None = None
    guide: Guide | None = None
    adapter: str | None = None
    scope: str = ""
    deadline_s: float | None = None
    shown: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A token, its natural log-probability, and the most probable ones in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds: until work began to show, and from the first token to the last.

    `energy` is the request's part of the steps that it shared, by ids taken in.
    """

    first_token_s: float
    rest_s: float
    energy: Energy | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that can be shown now, and the tokens that came meanwhile; the last has the reason.

    `finish_reason` is "stop" or "length"; `stopped` the stop string that was met. `reused` of the
    prompt's tokens were not read anew.
    """

    text: str
    chances: tuple[TokenChance, ...] = ()
    finish_reason: str | None = None
    stopped: str | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0
    timings: Timings | None = None
    reused: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: what its pieces say together."""

    text: str
    chances: tuple[TokenChance, ...]
    last: Piece


async def answer(worker: Worker, tokenizer: Tokenizer, ask: Ask) -> AsyncIterator[Piece]:
    """Yields the pieces of an answer; leaving early cancels the request.

    Raises RequestError for a prompt that leaves no position free, BusyError, DeadlineError, and
    what the engine raised.
    """
    context = worker.engine.config.max_positions
    if len(ask.prompt) >= context:
        raise RequestError(
            f"the prompt has {len(ask.prompt)} tokens, the model {context} positions",
            remedy="Shorten the prompt",
        )
    errand, number, news = current_errand(), worker.next_number(), asyncio.Queue[_News]()

    def sink(item: Progress | MiudoError) -> None:
        # What waits here for a slow reader holds no rows of logits.
        news.put_nowait(
            item if isinstance(item, MiudoError) else _drawn(item, ask.top, tokenizer.vocab_size)
        )

    stream = TextStream(tokenizer, ask.stop, after=ask.prompt, shown=ask.shown)
    began = time.monotonic()
    request = _request(number, worker, tokenizer, ask)
    worker.submit(request, sink, deadline_s=errand.left_s(ask.deadline_s))
    errand.prompt_tokens += len(ask.prompt)
    made, latest, first_s, reason, reused = 0, began, 0.0, None, 0
    energy: Energy | None = None
    latencies = worker.latencies
    try:
        while reason is None:
            drawn = await news.get()
            if isinstance(drawn, MiudoError):
                raise drawn
            energy, reused = drawn.energy, drawn.reused
            text, tokens, reason = _read(drawn, stream, ask.eos_ids)
            if made == 0:
                first_s = drawn.at - began
                latencies.first_token.add(first_s)
                errand.first_token_s = errand.first_token_s or first_s
            elif tokens:
                latencies.between_tokens.add((drawn.at - latest) / len(tokens))
            made, latest = made + len(tokens), drawn.at
            errand.new_tokens += len(tokens)
            chance = drawn.chances[: len(tokens)]
            if reason is None and (text or chance):
                yield Piece(text, chance)
    finally:
        worker.cancel(number)
        latencies.ends[reason or "abort"] += 1
    latencies.whole.add(latest - began)
    timings = Timings(first_s, latest - began - first_s, energy)
    end = text + stream.finish()
    read = len(ask.prompt)
    yield Piece(end, chance, reason, stream.stopped, read, made, timings, reused)


def chances(
    logits: FloatArray, token: int, logprob: float, top: int, *, n_tokens: int
) -> TokenChance:
    """Returns a token's chance with the `top` most probable of logits [V]; ties: lowest id.

    Rows from `n_tokens` on are no tokens: they have their share, and are never among the best.
    """
    if top == 0:
        return TokenChance(token, logprob)
    values = np.asarray(logits, dtype=np.float64)
    peak = float(values.max())
    total = peak + float(np.log(np.exp(values - peak).sum()))
    values = values[:n_tokens]
    some = np.argpartition(-values, min(top, len(values) - 1))[:top]
    # Partitioning parts ties as it likes: what equals the least of them is looked at anew.
    least = values[some].min()
    ids = np.flatnonzero(values >= least)
    best = ids[np.lexsort((ids, -values[ids]))][:top]
    return TokenChance(token, logprob, tuple((int(i), float(values[i]) - total) for i in best))


def _request(number: int, worker: Worker, tokenizer: Tokenizer, ask: Ask) -> Request:
    size = worker.engine.config.vocab_size
    padded = tokenizer.vocab_size < size  # rows that are no tokens must not be drawn
    return Request(
        number,
        ask.prompt,
        ask.max_tokens,
        ask.sampling,
        ask.eos_ids,
        ask.adapter,
        np.arange(size) < tokenizer.vocab_size if padded else None,
        ask.guide,
        ask.scope,
        logits=bool(ask.top),
    )


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A progress as it waits to be read: its tokens' chances in the place of logits."""

    tokens: tuple[int, ...]
    chances: tuple[TokenChance, ...]
    finish_reason: str | None
    energy: Energy | None
    at: float
    reused: int


_News = _Drawn | MiudoError


def _drawn(progress: Progress, top: int | None, n_tokens: int) -> _Drawn:
    reason, energy = progress.finish_reason, progress.energy
    found = _chances(progress, top, n_tokens)
    return _Drawn(progress.tokens, found, reason, energy, progress.at, progress.reused)


def _read(
    progress: _Drawn, stream: TextStream, eos_ids: tuple[int, ...]
) -> tuple[str, list[int], str | None]:
    """Returns what can be shown, the tokens that count, and why it ended."""
    text, tokens = "", list[int]()
    for token in progress.tokens:
        tokens.append(token)
        if token in eos_ids:
            return text, tokens, "stop"
        text += stream.push(token)
        if stream.stopped is not None:
            return text, tokens, "stop"
    return text, tokens, progress.finish_reason


def _chances(progress: Progress, top: int | None, n_tokens: int) -> tuple[TokenChance, ...]:
    if top is None:
        return ()
    pairs = list(zip(progress.tokens, progress.logprobs, strict=True))
    if progress.logits is None:
        return tuple(TokenChance(token, logprob) for token, logprob in pairs)
    return tuple(
        chances(progress.logits, token, logprob, top, n_tokens=n_tokens) for token, logprob in pairs
    )
