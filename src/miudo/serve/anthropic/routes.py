"""Anthropic's routes.

For: which path of theirs is answered by what.
Not for: the table as a whole (`miudo.serve.app`), or one answer (`messages` beside this).
Read next: `miudo.serve.anthropic.messages`.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from miudo.serve.anthropic.messages import (
    event,
    message_reply,
    message_stream,
    parse_count,
    parse_message,
)
from miudo.serve.describing import Asked
from miudo.serve.fields import FieldError, Fields
from miudo.serve.hosted import Hosted
from miudo.serve.house import House
from miudo.serve.receiving import BodyLimits, asked_by, received
from miudo.serve.replies import events, json_reply, unless_gone

__all__ = ["anthropic_routes"]

_VERSIONS = ("2023-06-01", "2026-10-21")
# Alike in what is spoken here, but for temperature, top_p and top_k: the later has them no more.
# They are taken all the same, since a small model needs them.

_COUNTED = {"messages": [{"role": "user", "content": "Hello"}]}
_SPOKEN = {**_COUNTED, "max_tokens": 8}
_FORM = {"type": "object", "properties": {"name": {"type": "string"}}}
_USED = [
    {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": "a", "name": "look", "input": {}}],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "seen"}]},
]
_CALLED = {
    "messages": _USED,
    "tools": [{"name": "look", "input_schema": _FORM}],
    "tool_choice": {"type": "tool", "name": "look"},
}


def anthropic_routes(house: House, limits: BodyLimits) -> list[Route]:
    """Returns the routes under `/v1/messages`, errors of which have Anthropic's shape."""

    async def read(request: Request) -> Fields:
        version = request.headers.get("anthropic-version")
        if version is not None and version not in _VERSIONS:
            known = ", ".join(_VERSIONS)
            raise FieldError(
                "anthropic-version", f"is {version!r:.40}", remedy=f"Send {known}, or none"
            )
        return await received(request, limits)

    async def messages(request: Request) -> Response:
        fields = await read(request)
        call = await parse_message(fields, await house.named(fields), scope=asked_by(request))
        if call.stream:
            return events(message_stream(call), told=event)
        return json_reply(await unless_gone(request, message_reply(call)))

    async def count(request: Request) -> Response:
        fields = await read(request)
        # Beside the event loop: what is counted may be as long as a body.
        return json_reply(await asyncio.to_thread(parse_count, fields, await house.named(fields)))

    return [
        Asked(
            "/v1/messages",
            messages,
            parse=_parse_message,
            samples=(_SPOKEN, {**_CALLED, "max_tokens": 8}),
        ),
        Asked("/v1/messages/count_tokens", count, parse=parse_count, samples=(_COUNTED, _CALLED)),
    ]


async def _parse_message(fields: Fields, hosted: Hosted) -> object:
    return await parse_message(fields, hosted, scope="")
