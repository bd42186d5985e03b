"""Server-sent events of an answer that is whole already, or that another server gives.

For: clients that asked for a stream, whoever answers.
Not for: streams of this server's models, which their own route makes.
Read next: `miudo.serve.routing.cascade`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from miudo.protocol import TextEvent
from miudo.serve.replies import encoded
from miudo.serve.routing.asked import CHAT, Asked
from miudo.serve.routing.far import far_frame

__all__ = ["far_stream", "replayed"]

_CHUNK = "chat.completion.chunk"
_DONE = b"data: [DONE]\n\n"


async def replayed(asked: Asked, reply: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """Yields the events of a reply that waited until its confidence was known."""
    frame = {k: v for k, v in reply.items() if k not in ("choices", "usage", "timings")}
    if asked.path == CHAT:
        frame["object"] = _CHUNK
    for choice in reply["choices"]:
        if asked.path != CHAT:
            yield _line(frame, choices=[choice])
            continue
        index, message = choice["index"], choice["message"]
        yield _delta(frame, index, {"role": "assistant", "content": ""})
        said: dict[str, Any] = {"content": message["content"] or ""}
        calls = message.get("tool_calls") or ()
        if calls:
            said["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)]
        yield _delta(frame, index, said, logprobs=choice["logprobs"])
        yield _delta(frame, index, {}, reason=choice["finish_reason"])
    if asked.with_usage:
        told = {k: reply[k] for k in ("usage", "timings") if k in reply}
        yield _line(frame, choices=[], **told)
    yield _DONE


async def far_stream(
    asked: Asked, target: str, first: TextEvent, rest: AsyncIterator[TextEvent]
) -> AsyncIterator[bytes]:
    """Yields another server's answer as events; `first` has come already."""
    frame, usage = far_frame(target, _CHUNK), dict(first.usage)
    reason = first.finish_reason
    yield _delta(frame, 0, {"role": "assistant", "content": ""})
    if first.text:
        yield _delta(frame, 0, {"content": first.text})
    async for event in rest:
        usage |= event.usage
        reason = event.finish_reason or reason
        if event.text:
            yield _delta(frame, 0, {"content": event.text})
    yield _delta(frame, 0, {}, reason=reason or "stop")
    if asked.with_usage:
        yield _line(frame, choices=[], usage=usage)
    yield _DONE


def _delta(
    frame: Mapping[str, Any],
    index: int,
    delta: Mapping[str, Any],
    *,
    logprobs: Any = None,
    reason: str | None = None,
) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    return _line(frame, choices=[choice])


def _line(frame: Mapping[str, Any], **rest: Any) -> bytes:
    return b"data: " + encoded({**frame, **rest}) + b"\n\n"
