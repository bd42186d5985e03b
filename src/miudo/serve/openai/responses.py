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
from miudo.serve.asking import Drawing, gathered, timings
from miudo.serve.conversing import chat_asks
from miudo.serve.fields import Fields
from miudo.serve.guiding import no_stop_inside
from miudo.serve.hosted import Hosted
from miudo.serve.openai.response_items import ItemStream, items
from miudo.serve.openai.response_reading import refuse_rest, take_metadata, take_turns
from miudo.serve.openai.response_tools import take_text_form, take_toolbox
from miudo.serve.openai.sampling import take_drawing
from miudo.serve.replies import encoded
from miudo.serve.turns import Turn
from miudo.text.tools import CallForm

__all__ = ["ResponseCall", "ResponseStream", "parse_response", "response_reply"]


@dataclass(frozen=True, slots=True)
class ResponseCall:
    """A request that was read; what of it the reply gives back stands in `echoed`.

    `form` is that of calls, where the model may make some.
    """

    hosted: Hosted
    ask: Ask
    form: CallForm | None
    drawing: Drawing
    echoed: Mapping[str, Any]
    id: str
    created: int


async def parse_response(fields: Fields, hosted: Hosted, *, scope: str) -> ResponseCall:
    """Returns the call. Raises FieldError, and RequestError for turns a template refuses."""
    turns = take_turns(fields)
    fields.refuse({"n": 1})
    size = hosted.loaded.model.config.vocab_size
    drawing = take_drawing(fields, length=("max_output_tokens",), vocab_size=size)
    metadata = take_metadata(fields)
    (toolbox, tools_shown), (language, text_shown) = take_toolbox(fields), take_text_form(fields)
    no_stop_inside(language, drawing.stop)
    refuse_rest(fields)
    (ask,), form = await chat_asks(hosted, turns, drawing, toolbox, language, scope=scope)
    echoed = {
        **tools_shown,
        **text_shown,
        "instructions": turns[0].content if turns[0].role == "system" else None,
        "metadata": metadata,
        "max_output_tokens": drawing.max_tokens,
        "temperature": drawing.sampling.temperature,
        "top_p": drawing.sampling.top_p,
    }
    number = secrets.token_hex(16)
    return ResponseCall(hosted, ask, form, drawing, echoed, number, hosted.now())


async def response_reply(call: ResponseCall) -> dict[str, Any]:
    """Returns the whole reply."""
    (whole,) = await gathered(call.hosted, [call.ask])
    turn = Turn(call.form)
    turn.push(whole.text, is_last=True)
    return _ended(call, turn, whole.last)


class ResponseStream:
    """The events of one response, numbered from 0."""

    def __init__(self, call: ResponseCall) -> None:
        self._call, self._count = call, 0

    async def lines(self) -> AsyncIterator[bytes]:
        """Yields the events: a response that opens, its items, and all closed."""
        call = self._call
        pieces = answer(call.hosted.worker, call.hosted.loaded.tokenizer, call.ask)
        piece = await anext(pieces)  # what is refused is refused before anything is said
        opened = _response(call, "in_progress")
        yield self._event("response.created", {"response": opened})
        yield self._event("response.in_progress", {"response": opened})
        turn = Turn(call.form)
        stream = ItemStream(turn, call.id)
        while True:
            events = turn.push(piece.text, is_last=piece.finish_reason is not None)
            for kind, values in stream.told(events):
                yield self._event(kind, values)
            if piece.finish_reason:
                break
            piece = await anext(pieces)
        whole = _ended(call, turn, piece)
        for kind, values in stream.end(whole["status"]):
            yield self._event(kind, values)
        yield self._event(f"response.{whole['status']}", {"response": whole})

    def told(self, body: Mapping[str, Any]) -> bytes:
        """Returns the event that tells of an error."""
        error = body["error"]
        return self._event("error", {name: error[name] for name in ("code", "message", "param")})

    def _event(self, kind: str, values: Mapping[str, Any]) -> bytes:
        event = {"type": kind, "sequence_number": self._count, **values}
        self._count += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), encoded(event))


def _ended(call: ResponseCall, turn: Turn, last: Piece) -> dict[str, Any]:
    cut = last.finish_reason == "length"
    status = "incomplete" if cut else "completed"
    read, new = len(call.ask.prompt), last.new_tokens
    return {
        **_response(call, status),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": items(turn, call.id, status),
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
        "truncation": "disabled",
        **call.echoed,
    }
