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
from miudo.serve.anthropic.reading import take_drawing, take_turns
from miudo.serve.asking import asks, gathered, timings
from miudo.serve.fields import Fields
from miudo.serve.hosted import Hosted
from miudo.serve.replies import encoded

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
    """A request that was read: what to ask the engine, and how it is answered."""

    hosted: Hosted
    ask: Ask
    stream: bool
    id: str


def parse_message(fields: Fields, hosted: Hosted, *, scope: str) -> MessageCall:
    """Returns the call. Raises FieldError, and RequestError for turns a template refuses."""
    turns = take_turns(fields)
    drawing = take_drawing(fields)
    fields.end()
    (ask,) = asks(hosted, hosted.chat_ids(turns), drawing, top=None, scope=scope)
    return MessageCall(hosted, ask, drawing.stream, f"msg_{secrets.token_hex(12)}")


def parse_count(fields: Fields, hosted: Hosted) -> dict[str, Any]:
    """Returns the reply of `/v1/messages/count_tokens`. Raises as `parse_message` does."""
    turns = take_turns(fields)
    fields.end()
    return {"input_tokens": len(hosted.chat_ids(turns, any_length=True))}


async def message_reply(call: MessageCall) -> dict[str, Any]:
    """Returns the whole reply."""
    (whole,) = await gathered(call.hosted, [call.ask])
    return {
        **_message(call),
        "content": [{"type": "text", "text": whole.text}],
        **_end(whole.last),
        "usage": _usage(call, whole.last.new_tokens),
        "timings": timings(whole.last),
    }


async def message_stream(call: MessageCall) -> AsyncIterator[bytes]:
    """Yields this protocol's events: a message that opens, one block of text, why it ended."""
    pieces = answer(call.hosted.worker, call.hosted.loaded.tokenizer, call.ask)
    piece = await anext(pieces)  # what is refused is refused before anything is said
    yield event({"type": "message_start", "message": _message(call)})
    block = {"type": "text", "text": ""}
    yield event({"type": "content_block_start", "index": 0, "content_block": block})
    yield event({"type": "ping"})
    while True:
        if piece.text:
            delta = {"type": "text_delta", "text": piece.text}
            yield event({"type": "content_block_delta", "index": 0, "delta": delta})
        if piece.finish_reason:
            break
        piece = await anext(pieces)
    yield event({"type": "content_block_stop", "index": 0})
    usage = _usage(call, piece.new_tokens)
    yield event({"type": "message_delta", "delta": _end(piece), "usage": usage})
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


def _end(last: Piece) -> dict[str, Any]:
    if last.finish_reason == "length":
        reason = "max_tokens"
    else:
        reason = "end_turn" if last.stopped is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": last.stopped}
