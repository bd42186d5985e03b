"""`/v1/chat/completions`: messages in, an assistant's message out.

For: the request's fields, the reply's shape, whole or as a stream.
Not for: drawing (`miudo.serve.answering`).
Read next: `miudo.serve.openai.sampling`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from miudo.protocol import Message
from miudo.serve.answering import Answer, Ask, TokenChance, answer
from miudo.serve.fields import FieldError, Fields
from miudo.serve.hosted import Hosted
from miudo.serve.openai.asking import asks, gathered, timings, usage
from miudo.serve.openai.sampling import MAX_TOP, Drawing, take_drawing
from miudo.serve.replies import encoded

__all__ = ["ChatCall", "chat_reply", "chat_stream", "parse_chat"]

_HARMLESS = {"store": False, "parallel_tool_calls": True, "service_tier": "auto"}
_UNSUPPORTED = (
    "audio", "functions", "function_call", "modalities", "prediction", "reasoning_effort",
    "tools", "tool_choice", "response_format", "verbosity", "web_search_options",
    "chat_template", "chat_template_kwargs",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A chat request that was read: the asks, one for each choice, and how it is answered."""

    hosted: Hosted
    asks: tuple[Ask, ...]
    drawing: Drawing
    id: str


def parse_chat(fields: Fields, hosted: Hosted, *, scope: str) -> ChatCall:
    """Returns the call. Raises FieldError, and RequestError for messages a template refuses."""
    messages = _messages(fields.take("messages"))
    config = hosted.loaded.model.config
    drawing = take_drawing(
        fields, length=("max_tokens", "max_completion_tokens"), vocab_size=config.vocab_size
    )
    logprobs = fields.flag("logprobs")
    top = fields.whole("top_logprobs", 0, MAX_TOP, 0)
    if top and not logprobs:
        raise FieldError("top_logprobs", "is given without logprobs", remedy="Set logprobs to true")
    fields.refuse({**_HARMLESS, **dict.fromkeys(_UNSUPPORTED)})
    fields.ignore("user", "metadata", "safety_identifier", "prompt_cache_key")
    fields.end()
    asked = asks(
        hosted, hosted.chat_ids(messages), drawing, top=top if logprobs else None, scope=scope
    )
    return ChatCall(hosted, asked, drawing, f"chatcmpl-{secrets.token_hex(12)}")


async def chat_reply(call: ChatCall) -> dict[str, Any]:
    """Returns the whole reply."""
    answers = await gathered(call.hosted, call.asks)
    return {
        **_frame(call, "chat.completion"),
        "choices": [_choice(call, i, whole) for i, whole in enumerate(answers)],
        "usage": usage([whole.last for whole in answers]),
        "timings": timings(answers[0].last),
    }


async def chat_stream(call: ChatCall) -> AsyncIterator[bytes]:
    """Yields server-sent events: the role, the pieces, why it ended, and [DONE]."""
    lasts = []
    frame = _frame(call, "chat.completion.chunk")
    for i, ask in enumerate(call.asks):
        begun = False
        async for piece in answer(call.hosted.worker, call.hosted.loaded.tokenizer, ask):
            if not begun:  # not before: what fails until then has a status of its own
                yield _event(frame, i, {"role": "assistant", "content": ""})
            begun = True
            if piece.text or piece.chances:
                yield _event(
                    frame, i, {"content": piece.text}, logprobs=_logprobs(call, piece.chances)
                )
            if piece.finish_reason:
                lasts.append(piece)
                yield _event(frame, i, {}, reason=piece.finish_reason)
    if call.drawing.with_usage:
        rest = {"choices": [], "usage": usage(lasts), "timings": timings(lasts[0])}
        yield b"data: " + encoded({**frame, **rest}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _event(
    frame: dict[str, Any],
    index: int,
    delta: dict[str, Any],
    *,
    logprobs: dict[str, Any] | None = None,
    reason: str | None = None,
) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    return b"data: " + encoded({**frame, "choices": [choice]}) + b"\n\n"


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
    message = {"role": "assistant", "content": whole.text, "refusal": None}
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(call, whole.chances),
        "finish_reason": whole.last.finish_reason,
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


def _messages(given: Any) -> list[Message]:
    if not isinstance(given, list) or not given:
        raise FieldError("messages", "is no list of messages", remedy="Give at least one")
    return [_message(Fields(_object(i, value), f"messages[{i}]")) for i, value in enumerate(given)]


def _object(index: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FieldError(f"messages[{index}]", "is no object", remedy="Give role and content")
    return value


def _message(fields: Fields) -> Message:
    role = fields.choice("role", ("system", "developer", "user", "assistant"))
    content = fields.take("content")
    if isinstance(content, list):
        content = "".join(
            _part(fields.name(f"content[{i}]"), part) for i, part in enumerate(content)
        )
    if not isinstance(content, str):
        raise fields.wrong("content", content, "text")
    fields.refuse(
        dict.fromkeys(("tool_calls", "tool_call_id", "function_call", "audio", "refusal"))
    )
    fields.ignore("name")
    fields.end()
    return Message("system" if role == "developer" else role, content)


def _part(path: str, part: Any) -> str:
    if not isinstance(part, dict):
        raise FieldError(path, "is no object")
    fields = Fields(part, path)
    kind = fields.take("type")
    if kind != "text":
        raise FieldError(f"{path}.type", f"is {kind!r:.60}", remedy="Give parts of type text")
    text = fields.text("text")
    fields.end()
    return text
