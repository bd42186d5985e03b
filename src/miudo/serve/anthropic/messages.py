"""`/v1/messages`: turns in, an assistant's message out; and how many tokens the turns are.

For: the reply's shape, whole or as named events.
Not for: the request's fields (`miudo.serve.anthropic.reading`) or drawing.
Read next: `miudo.serve.anthropic.reading`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from miudo.serve.answering import Ask, Piece, answer
from miudo.serve.anthropic.blocks import BlockStream, blocks
from miudo.serve.anthropic.reading import take_drawing, take_turns
from miudo.serve.anthropic.tools import take_tools
from miudo.serve.asking import gathered, timings
from miudo.serve.conversing import chat_asks
from miudo.serve.fields import Fields
from miudo.serve.hosted import Hosted
from miudo.serve.replies import encoded
from miudo.serve.turns import Turn
from miudo.text.tools import CallForm

__all__ = [
    "MessageCall",
    "event",
    "message_reply",
    "message_stream",
    "parse_count",
    "parse_message",
]


@dataclass(frozen=True, slots=True)
class MessageCall:
    """A request that was read: what to ask the engine, and how it is answered.

    `form` is that of calls, where the model may make some.
    """

    hosted: Hosted
    ask: Ask
    form: CallForm | None
    stream: bool
    id: str


async def parse_message(fields: Fields, hosted: Hosted, *, scope: str) -> MessageCall:
    """Returns the call. Raises FieldError, and RequestError for turns a template refuses."""
    turns, toolbox = take_turns(fields), take_tools(fields)
    drawing = take_drawing(fields)
    fields.end()
    (ask,), form = await chat_asks(hosted, turns, drawing, toolbox, None, scope=scope)
    return MessageCall(hosted, ask, form, drawing.stream, f"msg_{secrets.token_hex(12)}")


def parse_count(fields: Fields, hosted: Hosted) -> dict[str, Any]:
    """Returns the reply of `/v1/messages/count_tokens`. Raises as `parse_message` does."""
    turns, toolbox = take_turns(fields), take_tools(fields)
    fields.end()
    return {"input_tokens": len(hosted.chat_ids(turns, toolbox.told, any_length=True))}


async def message_reply(call: MessageCall) -> dict[str, Any]:
    """Returns the whole reply."""
    (whole,) = await gathered(call.hosted, [call.ask])
    turn = Turn(call.form)
    turn.push(whole.text, is_last=True)
    return {
        **_message(call),
        "content": blocks(turn),
        **_end(turn, whole.last),
        "usage": _usage(call, whole.last.new_tokens),
        "timings": timings(whole.last),
    }


async def message_stream(call: MessageCall) -> AsyncIterator[bytes]:
    """Yields this protocol's events: a message that opens, its blocks, why it ended."""
    pieces = answer(call.hosted.worker, call.hosted.loaded.tokenizer, call.ask)
    piece = await anext(pieces)  # what is refused is refused before anything is said
    yield event({"type": "message_start", "message": _message(call)})
    turn = Turn(call.form)
    stream = BlockStream(turn)
    while True:
        events = turn.push(piece.text, is_last=piece.finish_reason is not None)
        for told in stream.told(events):
            yield event(told)
        if piece.finish_reason:
            break
        piece = await anext(pieces)
    for told in stream.end():
        yield event(told)
    usage = _usage(call, piece.new_tokens)
    yield event({"type": "message_delta", "delta": _end(turn, piece), "usage": usage})
    yield event({"type": "message_stop"})


def event(value: dict[str, Any]) -> bytes:
    """Returns a server-sent event that is named as its type."""
    return b"event: %b\ndata: %b\n\n" % (str(value["type"]).encode(), encoded(value))


def _message(call: MessageCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "message",
        "role": "assistant",
        "model": call.hosted.name,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(call, 0),
    }


def _usage(call: MessageCall, new_tokens: int) -> dict[str, int]:
    return {"input_tokens": len(call.ask.prompt), "output_tokens": new_tokens}


def _end(turn: Turn, last: Piece) -> dict[str, Any]:
    if turn.is_call(last.finish_reason or ""):
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if last.finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    reason = "end_turn" if last.stopped is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": last.stopped}
