"""`/v1/responses`: input in, a response with one message out; nothing is kept.

For: the reply's shape, whole or as numbered events.
Not for: the request's fields (`miudo.serve.openai.response_reading`) or drawing.
Read next: `miudo.serve.openai.response_reading`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from miudo.serve.answering import Ask, Piece, answer
from miudo.serve.asking import Drawing, asks, gathered, timings
from miudo.serve.fields import Fields
from miudo.serve.hosted import Hosted
from miudo.serve.openai.response_reading import refuse_rest, take_metadata, take_turns
from miudo.serve.openai.sampling import take_drawing
from miudo.serve.replies import encoded

__all__ = ["ResponseCall", "ResponseStream", "parse_response", "response_reply"]


@dataclass(frozen=True, slots=True)
class ResponseCall:
    """A request that was read; what of it the reply gives back stands in `echoed`."""

    hosted: Hosted
    ask: Ask
    drawing: Drawing
    echoed: Mapping[str, Any]
    id: str
    created: int


def parse_response(fields: Fields, hosted: Hosted, *, scope: str) -> ResponseCall:
    """Returns the call. Raises FieldError, and RequestError for turns a template refuses."""
    turns = take_turns(fields)
    fields.refuse({"n": 1})
    size = hosted.loaded.model.config.vocab_size
    drawing = take_drawing(fields, length=("max_output_tokens",), vocab_size=size)
    metadata = take_metadata(fields)
    refuse_rest(fields)
    (ask,) = asks(hosted, hosted.chat_ids(turns), drawing, top=None, scope=scope)
    echoed = {
        "instructions": turns[0].content if turns[0].role == "system" else None,
        "metadata": metadata,
        "max_output_tokens": drawing.max_tokens,
        "temperature": drawing.sampling.temperature,
        "top_p": drawing.sampling.top_p,
    }
    number = secrets.token_hex(16)
    return ResponseCall(hosted, ask, drawing, echoed, number, hosted.now())


async def response_reply(call: ResponseCall) -> dict[str, Any]:
    """Returns the whole reply."""
    (whole,) = await gathered(call.hosted, [call.ask])
    return _ended(call, whole.text, whole.last)


class ResponseStream:
    """The events of one response, numbered from 0."""

    def __init__(self, call: ResponseCall) -> None:
        self._call, self._count = call, 0

    async def lines(self) -> AsyncIterator[bytes]:
        """Yields the events: a response that opens, an item, a part, its text, and all closed."""
        call, place = self._call, {"output_index": 0}
        text, part = "", place | {"item_id": _item_id(call), "content_index": 0}
        pieces = answer(call.hosted.worker, call.hosted.loaded.tokenizer, call.ask)
        piece = await anext(pieces)  # what is refused is refused before anything is said
        opened = _response(call, "in_progress")
        yield self._event("response.created", {"response": opened})
        yield self._event("response.in_progress", {"response": opened})
        item = _item(call, "in_progress", [])
        yield self._event("response.output_item.added", place | {"item": item})
        yield self._event("response.content_part.added", part | {"part": _part("")})
        while True:
            if piece.text:
                text += piece.text
                delta = part | {"delta": piece.text, "logprobs": []}
                yield self._event("response.output_text.delta", delta)
            if piece.finish_reason:
                break
            piece = await anext(pieces)
        yield self._event("response.output_text.done", part | {"text": text, "logprobs": []})
        yield self._event("response.content_part.done", part | {"part": _part(text)})
        whole = _ended(call, text, piece)
        yield self._event("response.output_item.done", place | {"item": whole["output"][0]})
        yield self._event(f"response.{whole['status']}", {"response": whole})

    def told(self, body: Mapping[str, Any]) -> bytes:
        """Returns the event that tells of an error."""
        error = body["error"]
        return self._event("error", {name: error[name] for name in ("code", "message", "param")})

    def _event(self, kind: str, values: Mapping[str, Any]) -> bytes:
        event = {"type": kind, "sequence_number": self._count, **values}
        self._count += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), encoded(event))


def _ended(call: ResponseCall, text: str, last: Piece) -> dict[str, Any]:
    cut = last.finish_reason == "length"
    status = "incomplete" if cut else "completed"
    read, new = len(call.ask.prompt), last.new_tokens
    return {
        **_response(call, status),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [_item(call, status, [_part(text)])],
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": last.reused, "cache_write_tokens": 0},
            "output_tokens": new,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + new,
        },
        "timings": timings(last),
    }


def _response(call: ResponseCall, status: str) -> dict[str, Any]:
    return {
        "id": f"resp_{call.id}",
        "object": "response",
        "created_at": call.created,
        "status": status,
        "model": call.hosted.name,
        "error": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
        "store": False,
        "background": False,
        "previous_response_id": None,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "text": {"format": {"type": "text"}},
        "truncation": "disabled",
        **call.echoed,
    }


def _item(call: ResponseCall, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": _item_id(call),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def _item_id(call: ResponseCall) -> str:
    return f"msg_{call.id}"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
