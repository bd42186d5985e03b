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
from typing import Any

from miudo.serve.answering import Answer, Ask, Piece, TokenChance, answer
from miudo.serve.echo import echoed
from miudo.serve.fields import FieldError, Fields
from miudo.serve.hosted import Hosted
from miudo.serve.openai.asking import asks, gathered, timings, usage
from miudo.serve.openai.prompts import take_prompts
from miudo.serve.openai.sampling import MAX_TOP, Drawing, take_drawing
from miudo.serve.replies import encoded

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


def parse_completion(fields: Fields, hosted: Hosted, *, scope: str) -> CompletionCall:
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
    fields.refuse({"suffix": ""})
    fields.ignore("user")
    fields.end()
    asked = tuple(
        () if only_echo else asks(hosted, prompt, drawing, top=top, scope=scope)
        for prompt in prompts
    )
    name = f"cmpl-{secrets.token_hex(12)}"
    return CompletionCall(hosted, prompts, asked, drawing, top, echo, name)


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
            choices.append(_choice(call, len(choices), front, whole))
        at += len(asked)
    lasts = [whole.last for whole in answers]
    prompt_tokens = sum(map(len, call.prompts))
    new = sum(last.new_tokens for last in lasts)
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": new}
    reply = {**_frame(call), "choices": choices}
    reply["usage"] = counts | {"total_tokens": prompt_tokens + new}
    return reply | ({"timings": timings(lasts[0])} if lasts else {})


async def completion_stream(call: CompletionCall) -> AsyncIterator[bytes]:
    """Yields server-sent events, prompt by prompt, and [DONE]."""
    lasts: list[Piece] = []
    index = 0
    for asked in call.asks:
        for ask in asked:
            place = 0
            async for piece in answer(call.hosted.worker, call.hosted.loaded.tokenizer, ask):
                logprobs = _logprobs(call, piece.chances, place)
                place += len(piece.text)
                choice = {
                    "index": index,
                    "text": piece.text,
                    "logprobs": logprobs,
                    "finish_reason": piece.finish_reason,
                }
                yield b"data: " + encoded({**_frame(call), "choices": [choice]}) + b"\n\n"
            lasts.append(piece)
            index += 1
    if call.drawing.with_usage:
        rest = {"choices": [], "usage": usage(lasts), "timings": timings(lasts[0])}
        yield b"data: " + encoded({**_frame(call), **rest}) + b"\n\n"
    yield b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class _Front:
    """What stands before an answer: the prompt's text and its tokens' chances."""

    text: str
    chances: tuple[TokenChance, ...] | None


async def _front(call: CompletionCall, prompt: Sequence[int]) -> _Front:
    if not call.echo:
        return _Front("", None)
    text = call.hosted.loaded.tokenizer.decode(prompt)
    if call.top is None:
        return _Front(text, None)
    adapter = call.hosted.loaded.adapter
    future = call.hosted.worker.call(lambda engine: echoed(engine, prompt, call.top or 0, adapter))
    chances = await asyncio.wrap_future(future)
    return _Front(text, chances)


def _choice(
    call: CompletionCall, index: int, front: _Front, whole: Answer | None
) -> dict[str, Any]:
    chances = (*(front.chances or ()), *(() if whole is None else whole.chances))
    return {
        "index": index,
        "text": front.text + ("" if whole is None else whole.text),
        "logprobs": _logprobs(call, chances, 0),
        "finish_reason": "length" if whole is None else whole.last.finish_reason,
    }


def _logprobs(
    call: CompletionCall, chances: Sequence[TokenChance], place: int
) -> dict[str, Any] | None:
    """This protocol's lists: the first token of an echoed text has no log-probability."""
    if call.top is None:
        return None
    decode = call.hosted.loaded.tokenizer.decode
    tokens = [decode([c.token]) for c in chances]
    offsets = []
    for token in tokens:
        offsets.append(place)
        place += len(token)
    unknown = [c.logprob != c.logprob for c in chances]  # NaN: nothing precedes it
    return {
        "tokens": tokens,
        "token_logprobs": [
            None if no else c.logprob for c, no in zip(chances, unknown, strict=True)
        ],
        "top_logprobs": [
            None if no else {decode([t]): p for t, p in reversed(c.top)}
            for c, no in zip(chances, unknown, strict=True)
        ],
        "text_offset": offsets,
    }


def _frame(call: CompletionCall) -> dict[str, Any]:
    hosted = call.hosted
    return {
        "id": call.id,
        "object": "text_completion",
        "created": hosted.now(),
        "model": hosted.name,
        "system_fingerprint": hosted.fingerprint,
    }
