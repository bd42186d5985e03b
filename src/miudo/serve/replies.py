"""How an answer, an error and a stream leave the server.

For: JSON, server-sent events and JSON lines, and streams that end with their client.
Not for: what is in them (`miudo.serve.openai`), or an error's words (`miudo.serve.faults`).
Read next: `miudo.serve.app`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from miudo.errors import DeadlineError, MiudoError
from miudo.serve.errand import current_errand
from miudo.serve.faults import Fault, body_for, fault_of

__all__ = [
    "ClientGoneError",
    "Told",
    "encoded",
    "events",
    "failure",
    "json_reply",
    "unless_gone",
]

_T = TypeVar("_T")
Told = Callable[[dict[str, Any]], bytes]
"""Turns an error's body into a line of a protocol's stream."""


class ClientGoneError(Exception):
    """Whoever asked has hung up: there is nobody to answer."""


def encoded(value: Mapping[str, Any]) -> bytes:
    """Returns compact JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def json_reply(value: Mapping[str, Any], status: int = 200, **headers: str) -> Response:
    """Returns a JSON answer."""
    return Response(encoded(value), status, headers, "application/json")


def failure(path: str, fault: Fault, **headers: str) -> Response:
    """Returns the reply that tells of a fault, as the protocol of `path` tells it."""
    if fault.status in (429, 503):
        headers = {"retry-after": str(fault.wait_s), **headers}
    return json_reply(body_for(path, fault), fault.status, **headers)


def events(
    lines: AsyncIterator[bytes], *, told: Told | None = None, kind: str = "text/event-stream"
) -> Response:
    """Returns a reply that sends what comes; a client that goes ends the generator.

    What fails before the first line has a status of its own; what fails later is the stream's
    last line, the error's body as `told` writes it.
    """
    return _Stream(lines, told or _event, kind)


async def unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """Returns what `work` gives, and cancels it if nobody waits for that any more.

    Raises ClientGoneError where the client hangs up, DeadlineError where its time is over.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        left = current_errand().left_s(None)
        await asyncio.wait((task, gone), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGoneError
        raise DeadlineError("the time given for the answer is over")
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class _Stream(Response):
    """Lines as they come, begun when there is one."""

    def __init__(self, lines: AsyncIterator[bytes], told: Told, kind: str) -> None:
        super().__init__(media_type=kind)
        self._lines, self._told = lines, told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Waits for the first line, then sends as they come."""
        try:
            first = await unless_gone(Request(scope, receive), anext(self._lines))
            headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
            rest = self._from(first, str(scope["path"]))
            reply = StreamingResponse(rest, headers=headers, media_type=self.media_type)
            await reply(scope, receive, send)
        finally:
            if isinstance(self._lines, AsyncGenerator):
                await self._lines.aclose()

    async def _from(self, first: bytes, path: str) -> AsyncIterator[bytes]:
        yield first
        try:
            async for line in self._lines:
                yield line
        except MiudoError as error:
            yield self._told(body_for(path, fault_of(error)))


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + encoded(value) + b"\n\n"


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
