"""`/v1/chat/completions`: messages in, an assistant's message out.

For: the request's fields, the reply's shape, whole or as a stream.
Not for: drawing (`miudo.serve.answering`).
Read next: `miudo.serve.openai.sampling`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from miudo.serve.answering import Answer, Ask, TokenChance, answer
from miudo.serve.asking import Drawing, gathered, timings
from miudo.serve.conversing import chat_asks
from miudo.serve.fields import FieldError, Fields
from miudo.serve.guiding import no_stop_inside
from miudo.serve.hosted import Hosted
from miudo.serve.openai.formats import take_format
from miudo.serve.openai.messages import take_messages
from miudo.serve.openai.sampling import MAX_TOP, take_drawing
from miudo.serve.openai.tools import take_tools
from miudo.serve.openai.turns import delta, message, reason
from miudo.serve.openai.usage import usage
from miudo.serve.replies import Mould, encoded
from miudo.serve.turns import Turn
from miudo.text.tools import CallForm

__all__ = ["ChatCall", "chat_reply", "chat_stream", "parse_chat"]

_HARMLESS = {"store": False, "service_tier": "auto"}
_UNSUPPORTED = (
    "audio", "functions", "function_call", "modalities", "prediction", "reasoning_effort",
    "verbosity", "web_search_options",
    "chat_template", "chat_template_kwargs",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A chat request that was read: the asks, one for each choice, and how it is answered.

    `form` is that of calls, where the model may make some.
    """

    hosted: Hosted
    asks: tuple[Ask, ...]
    drawing: Drawing
    form: CallForm | None
    id: str


async def parse_chat(fields: Fields, hosted: Hosted, *, scope: str) -> ChatCall:
    """Returns the call. Raises FieldError, and RequestError for messages a template refuses."""
    messages = take_messages(fields)
    config = hosted.loaded.model.config
    drawing = take_drawing(
        fields, length=("max_tokens", "max_completion_tokens"), vocab_size=config.vocab_size
    )
    logprobs = fields.flag("logprobs")
    top = fields.whole("top_logprobs", 0, MAX_TOP, 0)
    if top and not logprobs:
        raise FieldError("top_logprobs", "is given without logprobs", remedy="Set logprobs to true")
    toolbox, language = take_tools(fields), take_format(fields)
    no_stop_inside(language, drawing.stop)
    fields.refuse({**_HARMLESS, **dict.fromkeys(_UNSUPPORTED)})
    fields.ignore("user", "metadata", "safety_identifier", "prompt_cache_key")
    fields.end()
    asked, form = await chat_asks(
        hosted,
        messages,
        drawing,
        toolbox,
        language,
        scope=scope,
        top=top if logprobs else None,
    )
    return ChatCall(hosted, asked, drawing, form, f"chatcmpl-{secrets.token_hex(12)}")


async def chat_reply(call: ChatCall) -> dict[str, Any]:
    """Returns the whole reply."""
    answers = await gathered(call.hosted, call.asks)
    return {
        **_frame(call, "chat.completion"),
        "choices": [_choice(call, i, whole) for i, whole in enumerate(answers)],
        "usage": usage(len(call.asks[0].prompt), [whole.last for whole in answers]),
        "timings": timings(answers[0].last),
    }


async def chat_stream(call: ChatCall) -> AsyncIterator[bytes]:
    """Yields server-sent events: the role, the pieces, why it ended, and [DONE]."""
    lasts = []
    frame = _frame(call, "chat.completion.chunk")
    for i, ask in enumerate(call.asks):
        begun, turn = False, Turn(call.form)
        mould = Mould(partial(_text_chunk, frame, i))
        plain = call.form is None and ask.top is None
        async for piece in answer(call.hosted.worker, call.hosted.loaded.tokenizer, ask):
            if not begun:  # not before: what fails until then has a status of its own
                yield _event(frame, i, {"role": "assistant", "content": ""})
            begun = True
            if plain and piece.finish_reason is None:
                yield b"data: " + mould.filled(piece.text) + b"\n\n"
                continue
            told = turn.push(piece.text, is_last=piece.finish_reason is not None)
            deltas = [delta(turn, event) for event in told]
            chances = _logprobs(call, piece.chances)
            for added in deltas or ([{"content": ""}] if piece.chances else []):
                yield _event(frame, i, added, logprobs=chances)
                chances = None
            if piece.finish_reason:
                lasts.append(piece)
                yield _event(frame, i, {}, ended=reason(turn, piece.finish_reason))
    if call.drawing.with_usage:
        rest = {
            "choices": [],
            "usage": usage(len(call.asks[0].prompt), lasts),
            "timings": timings(lasts[0]),
        }
        yield b"data: " + encoded({**frame, **rest}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _event(
    frame: dict[str, Any],
    index: int,
    added: dict[str, Any],
    *,
    logprobs: dict[str, Any] | None = None,
    ended: str | None = None,
) -> bytes:
    return b"data: " + encoded(_chunk(frame, index, added, logprobs, ended)) + b"\n\n"


def _text_chunk(frame: dict[str, Any], index: int, text: str) -> dict[str, Any]:
    return _chunk(frame, index, {"content": text}, None, None)


def _chunk(
    frame: dict[str, Any],
    index: int,
    added: dict[str, Any],
    logprobs: dict[str, Any] | None,
    ended: str | None,
) -> dict[str, Any]:
    choice = {"index": index, "delta": added, "logprobs": logprobs, "finish_reason": ended}
    return {**frame, "choices": [choice]}


def _frame(call: ChatCall, kind: str) -> dict[str, Any]:
    hosted = call.hosted
    return {
        "id": call.id,
        "object": kind,
        "created": hosted.now(),
        "model": hosted.name,
        "system_fingerprint": hosted.fingerprint,
    }


def _choice(call: ChatCall, index: int, whole: Answer) -> dict[str, Any]:
    turn = Turn(call.form)
    turn.push(whole.text, is_last=True)
    return {
        "index": index,
        "message": {"role": "assistant", **message(turn), "refusal": None},
        "logprobs": _logprobs(call, whole.chances),
        "finish_reason": reason(turn, whole.last.finish_reason or "stop"),
    }


def _logprobs(call: ChatCall, chances: Sequence[TokenChance]) -> dict[str, Any] | None:
    if call.asks[0].top is None:
        return None
    hosted = call.hosted

    def shown(token: int, logprob: float) -> dict[str, Any]:
        raw = hosted.loaded.tokenizer.token_bytes(token)
        text = raw.decode("utf-8", "replace")
        return {"token": text, "logprob": logprob, "bytes": list(raw)}

    return {
        "content": [
            {**shown(c.token, c.logprob), "top_logprobs": [shown(t, p) for t, p in c.top]}
            for c in chances
        ]
    }
