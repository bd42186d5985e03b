"""`/api/generate` and `/api/chat`: a text or messages in, JSON lines or one object out.

For: the requests' fields and the replies' shape.
Not for: options (`miudo.serve.ollama.options`) or drawing (`miudo.serve.answering`).
Read next: `miudo.serve.ollama.options`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from miudo.protocol import Message
from miudo.serve.answering import Ask, Piece, Timings, answer
from miudo.serve.asking import gathered
from miudo.serve.fields import FieldError, Fields
from miudo.serve.hosted import Hosted
from miudo.serve.ollama.options import Options, ask_for, take_keep_alive, take_options
from miudo.serve.replies import encoded

__all__ = ["GenerateCall", "generate_reply", "generate_stream", "line", "parse_chat", "parse_text"]

# Fields of both routes that exist elsewhere and not here, with values that ask for nothing.
_UNSUPPORTED = {
    "format": "", "think": False, "logprobs": False, "top_logprobs": 0, "truncate": False,
    "shift": False,
}  # fmt: skip
_NO_TEXT: dict[str, Any] = {"suffix": "", "images": [], "template": "", "context": []}
_NO_TURN: dict[str, Any] = {
    "images": [], "tool_calls": [], "tool_name": None, "tool_call_id": None, "thinking": "",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """A request that was read; without an `ask` it wants the model opened, which it is.

    `chat` says which of the two shapes the reply has; `began` is a time of `perf_counter`.
    """

    hosted: Hosted
    ask: Ask | None
    chat: bool
    stream: bool
    began: float = field(default_factory=time.perf_counter)


def parse_text(fields: Fields, hosted: Hosted, *, scope: str) -> GenerateCall:
    """Returns the call of `/api/generate`: through the chat template unless `raw`."""
    prompt, system = fields.text("prompt", ""), fields.text("system", "")
    raw = fields.flag("raw")
    fields.refuse(_NO_TEXT)
    stream, options = _common(fields, asked=bool(prompt))
    if raw and system:
        raise FieldError("system", "is given with raw", remedy="Leave out one of them")
    if not prompt:
        return GenerateCall(hosted, None, chat=False, stream=stream)
    if raw or (hosted.template is None and not system):
        ids = hosted.text_ids(prompt)
    else:
        before = [Message("system", system)] if system else []
        ids = hosted.chat_ids([*before, Message("user", prompt)])
    return GenerateCall(hosted, ask_for(hosted, ids, options, scope=scope), False, stream)


def parse_chat(fields: Fields, hosted: Hosted, *, scope: str) -> GenerateCall:
    """Returns the call of `/api/chat`."""
    given = fields.take("messages")
    if not isinstance(given, list | None):
        raise fields.wrong("messages", given, "a list of messages")
    turns = [_turn(f"messages[{i}]", value) for i, value in enumerate(given or [])]
    fields.refuse({"tools": []})
    stream, options = _common(fields, asked=bool(turns))
    if not turns:
        return GenerateCall(hosted, None, chat=True, stream=stream)
    ask = ask_for(hosted, hosted.chat_ids(turns), options, scope=scope)
    return GenerateCall(hosted, ask, chat=True, stream=stream)


async def generate_reply(call: GenerateCall) -> dict[str, Any]:
    """Returns the whole reply."""
    if call.ask is None:
        return _said(call, "") | {"done": True, "done_reason": "load"}
    (whole,) = await gathered(call.hosted, [call.ask])
    return _said(call, whole.text) | _end(call, whole.last)


async def generate_stream(call: GenerateCall) -> AsyncIterator[bytes]:
    """Yields a line of JSON for each piece, and a last one with counts and durations."""
    if call.ask is None:
        yield line(await generate_reply(call))
        return
    async for piece in answer(call.hosted.worker, call.hosted.loaded.tokenizer, call.ask):
        if piece.text:
            yield line(_said(call, piece.text) | {"done": False})
        if piece.finish_reason:
            yield line(_said(call, "") | _end(call, piece))


def line(value: dict[str, Any]) -> bytes:
    """Returns a line of a stream of JSON lines."""
    return encoded(value) + b"\n"


def _common(fields: Fields, *, asked: bool) -> tuple[bool, Options]:
    """Takes what both routes have; nothing may be left then."""
    stream = fields.flag("stream", True)
    if take_keep_alive(fields) and not asked:
        raise FieldError(
            "keep_alive", "is 0, which asks to close the model", remedy="It stays open; leave it"
        )
    options = take_options(fields)
    fields.refuse(_UNSUPPORTED)
    fields.end()
    return stream, options


def _turn(path: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise FieldError(path, "is no object", remedy="Give role and content")
    fields = Fields(value, path)
    role = fields.choice("role", ("system", "user", "assistant"))
    message = Message(role, fields.text("content"))
    fields.refuse(_NO_TURN)
    fields.end()
    return message


def _said(call: GenerateCall, text: str) -> dict[str, Any]:
    said = {"message": {"role": "assistant", "content": text}} if call.chat else {"response": text}
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {"model": call.hosted.name, "created_at": now, **said}


def _end(call: GenerateCall, last: Piece) -> dict[str, Any]:
    """Counts and nanoseconds; nothing is loaded for a request, so that takes none."""
    spent = last.timings or Timings(0.0, 0.0)
    return {
        "done": True,
        "done_reason": last.finish_reason,
        "total_duration": _ns(time.perf_counter() - call.began),
        "load_duration": 0,
        "prompt_eval_count": last.prompt_tokens,
        "prompt_eval_duration": _ns(spent.first_token_s),
        "eval_count": last.new_tokens,
        "eval_duration": _ns(spent.rest_s),
    }


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
