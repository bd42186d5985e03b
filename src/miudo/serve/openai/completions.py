"""`/v1/completions`: text in, what follows it out; with `echo` what each token of it cost.

For: plain continuation, and log-probabilities of a given text, which evaluation stands on.
Not for: drawing (`miudo.serve.answering`).
Read next: `miudo.serve.openai.sampling`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from miudo.serve.answering import Answer, Ask, Piece, TokenChance, answer
from miudo.serve.asking import Drawing, asks, gathered, timings
from miudo.serve.echo import echoed
from miudo.serve.fields import FieldError, Fields
from miudo.serve.guiding import no_stop_inside
from miudo.serve.hosted import Hosted
from miudo.serve.openai.formats import take_structured
from miudo.serve.openai.listing import Listing
from miudo.serve.openai.prompts import take_prompts
from miudo.serve.openai.sampling import MAX_TOP, take_drawing
from miudo.serve.openai.usage import usage
from miudo.serve.replies import Mould, encoded

__all__ = ["CompletionCall", "completion_reply", "completion_stream", "parse_completion"]

_MAX_PROMPTS = 128
_DEFAULT_TOKENS = 16  # this protocol's


@dataclass(frozen=True, slots=True)
class CompletionCall:
    """A request that was read: for each prompt its ids and its asks, none where only echoed."""

    hosted: Hosted
    prompts: tuple[tuple[int, ...], ...]
    asks: tuple[tuple[Ask, ...], ...]
    drawing: Drawing
    top: int | None
    echo: bool
    id: str


async def parse_completion(fields: Fields, hosted: Hosted, *, scope: str) -> CompletionCall:
    """Returns the call. Raises FieldError."""
    prompts = take_prompts(fields, "prompt", hosted, most=_MAX_PROMPTS)
    echo = fields.flag("echo")
    given = fields.take("max_tokens")
    only_echo = echo and type(given) is int and given == 0
    config = hosted.loaded.model.config
    common = Fields(
        {"max_tokens": 1 if only_echo else (_DEFAULT_TOKENS if given is None else given)}
    )
    length = common.whole("max_tokens", 1, 1 << 31)
    fields_left = take_drawing(fields, length=(), vocab_size=config.vocab_size)
    drawing = Drawing(
        length, fields_left.n, fields_left.sampling, fields_left.penalties,
        fields_left.stop, fields_left.stream, fields_left.with_usage,
    )  # fmt: skip
    top = fields.take("logprobs")
    if top is not None:
        top = Fields({"logprobs": top}).whole("logprobs", 0, MAX_TOP)
    best_of = fields.whole("best_of", 1, 4, drawing.n)
    if best_of != drawing.n:
        raise FieldError("best_of", f"is {best_of} where n is {drawing.n}", remedy="Leave it out")
    if echo and drawing.stream:
        raise FieldError("echo", "cannot be streamed", remedy="Leave out stream, or echo")
    language = take_structured(fields)
    no_stop_inside(language, drawing.stop)
    fields.refuse({"suffix": ""})
    fields.ignore("user")
    fields.end()
    asked: list[tuple[Ask, ...]] = [()] * len(prompts)
    for i, prompt in enumerate(() if only_echo else prompts):
        grammars = await hosted.compiler.begin(language, drawing.n)
        asked[i] = asks(hosted, prompt, drawing, top=top, scope=scope, grammars=grammars)
    name = f"cmpl-{secrets.token_hex(12)}"
    return CompletionCall(hosted, prompts, tuple(asked), drawing, top, echo, name)


async def completion_reply(call: CompletionCall) -> dict[str, Any]:
    """Returns the whole reply, choices of the first prompt first."""
    flat = [ask for asked in call.asks for ask in asked]
    answers = await gathered(call.hosted, flat)
    choices: list[dict[str, Any]] = []
    at = 0
    for prompt, asked in zip(call.prompts, call.asks, strict=True):
        front = await _front(call, prompt)
        made: list[Answer | None] = [*answers[at : at + len(asked)]]
        for whole in made or [None]:  # nothing is made where the prompt alone is asked about
            listing = Listing(call.hosted.loaded.tokenizer, () if call.echo else prompt)
            choices.append(_choice(call, len(choices), front, whole, listing))
        at += len(asked)
    lasts = [whole.last for whole in answers]
    reply = {**_frame(call), "choices": choices, "usage": usage(_read(call), lasts)}
    return reply | ({"timings": timings(lasts[0])} if lasts else {})


async def completion_stream(call: CompletionCall) -> AsyncIterator[bytes]:
    """Yields server-sent events, prompt by prompt, and [DONE]."""
    lasts: list[Piece] = []
    frame, tokenizer = _frame(call), call.hosted.loaded.tokenizer
    for index, ask in enumerate(ask for asked in call.asks for ask in asked):
        listing = Listing(tokenizer, ask.prompt)
        mould = Mould(partial(_streamed, frame, index))
        async for piece in answer(call.hosted.worker, tokenizer, ask):
            if call.top is None and piece.finish_reason is None:
                yield b"data: " + mould.filled(piece.text) + b"\n\n"
                continue
            logprobs = None if call.top is None else listing.take(piece.chances)
            event = _streamed(frame, index, piece.text, logprobs, piece.finish_reason)
            yield b"data: " + encoded(event) + b"\n\n"
        lasts.append(piece)
    if call.drawing.with_usage:
        rest = {"choices": [], "usage": usage(_read(call), lasts), "timings": timings(lasts[0])}
        yield b"data: " + encoded({**frame, **rest}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _streamed(
    frame: dict[str, Any],
    index: int,
    text: str,
    logprobs: dict[str, Any] | None = None,
    ended: str | None = None,
) -> dict[str, Any]:
    choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": ended}
    return {**frame, "choices": [choice]}


@dataclass(frozen=True, slots=True)
class _Front:
    """What stands before an answer: the prompt's text and its tokens' chances."""

    text: str
    chances: tuple[TokenChance, ...] | None


async def _front(call: CompletionCall, prompt: Sequence[int]) -> _Front:
    if not call.echo:
        return _Front("", None)
    tokenizer, adapter = call.hosted.loaded.tokenizer, call.hosted.loaded.adapter
    text, top, n_tokens = tokenizer.decode(prompt), call.top, tokenizer.vocab_size
    if top is None:
        return _Front(text, None)
    future = call.hosted.worker.call(
        lambda engine: echoed(engine, prompt, top, n_tokens=n_tokens, adapter=adapter),
        positions=len(prompt),
    )
    chances = await asyncio.wrap_future(future)
    return _Front(text, chances)


def _choice(
    call: CompletionCall, index: int, front: _Front, whole: Answer | None, listing: Listing
) -> dict[str, Any]:
    chances = (*(front.chances or ()), *(() if whole is None else whole.chances))
    return {
        "index": index,
        "text": front.text + ("" if whole is None else whole.text),
        "logprobs": None if call.top is None else listing.take(chances),
        "finish_reason": "length" if whole is None else whole.last.finish_reason,
    }


def _read(call: CompletionCall) -> int:
    return sum(map(len, call.prompts))


def _frame(call: CompletionCall) -> dict[str, Any]:
    hosted = call.hosted
    return {
        "id": call.id,
        "object": "text_completion",
        "created": hosted.now(),
        "model": hosted.name,
        "system_fingerprint": hosted.fingerprint,
    }
