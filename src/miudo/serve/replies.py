"""How an answer, an error and a stream of events leave the server.

For: one shape of errors, JSON and server-sent events, and streams that end with their client.
Not for: what is in them (`miudo.serve.openai`).
Read next: `miudo.serve.app`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from miudo.errors import (
    BusyError,
    ClosingError,
    DeadlineError,
    MissingError,
    MiudoError,
    RequestError,
    ResourceError,
)
from miudo.serve.errand import current_errand
from miudo.serve.fields import FieldError

__all__ = [
    "ClientGoneError",
    "encoded",
    "error_body",
    "events",
    "failure",
    "json_reply",
    "request_error",
    "unless_gone",
]

_T = TypeVar("_T")
_STATUS: tuple[tuple[type[MiudoError], int, str, str | None], ...] = (
    (RequestError, 400, "invalid_request_error", None),
    (MissingError, 404, "invalid_request_error", "model_not_found"),
    (ClosingError, 503, "server_error", "server_closing"),
    (BusyError, 429, "rate_limit_error", "server_busy"),
    (DeadlineError, 504, "timeout_error", "deadline_exceeded"),
    (ResourceError, 503, "server_error", "out_of_memory"),
)


class ClientGoneError(Exception):
    """Whoever asked has hung up: there is nobody to answer."""


def encoded(value: Mapping[str, Any]) -> bytes:
    """Returns compact JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def json_reply(value: Mapping[str, Any], status: int = 200, **headers: str) -> Response:
    """Returns a JSON answer."""
    return Response(encoded(value), status, headers, "application/json")


def error_body(error: MiudoError) -> tuple[int, dict[str, Any]]:
    """Returns the status and OpenAI's shape of an error: no path, no traceback.

    An error that no client can have caused says no more than that.
    """
    for kind, status, name, code in _STATUS:
        if isinstance(error, kind):
            param = error.param if isinstance(error, FieldError) else None
            return status, _shape(str(error), name, param, code)
    return 500, _shape("the server failed at this request", "server_error", None, "internal_error")


def request_error(message: str, code: str | None = None) -> dict[str, Any]:
    """Returns the shape of an error that is the request's and of no field."""
    return _shape(message, "invalid_request_error", None, code)


def failure(error: MiudoError) -> Response:
    """Returns the reply that tells of an error."""
    status, body = error_body(error)
    wait = error.retry_after_s if isinstance(error, BusyError) else BusyError.retry_after_s
    headers = {"retry-after": str(wait)} if status in (429, 503) else {}
    return json_reply(body, status, **headers)


def events(lines: AsyncIterator[bytes]) -> Response:
    """Returns a reply that sends what comes; a client that goes ends the generator."""
    return _Events(lines)


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


class _Events(Response):
    """Server-sent events. What fails before the first of them has a status of its own."""

    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        super().__init__(media_type="text/event-stream")
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Waits for the first event, then sends as they come."""
        try:
            first = await unless_gone(Request(scope, receive), anext(self._lines))
            headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
            reply = StreamingResponse(
                self._from(first), headers=headers, media_type=self.media_type
            )
            await reply(scope, receive, send)
        finally:
            if isinstance(self._lines, AsyncGenerator):
                await self._lines.aclose()

    async def _from(self, first: bytes) -> AsyncIterator[bytes]:
        yield first
        try:
            async for line in self._lines:
                yield line
        except MiudoError as error:  # too late for a status: the client is told in the stream
            yield b"data: " + encoded(error_body(error)[1]) + b"\n\n"


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _shape(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
