"""How an answer, an error and a stream of events leave the server.

For: one shape of errors, JSON and server-sent events, and streams that end with their client.
Not for: what is in them (`miudo.serve.openai`).
Read next: `miudo.serve.app`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from miudo.errors import (
    BusyError,
    DeadlineError,
    MissingError,
    MiudoError,
    RequestError,
    ResourceError,
)
from miudo.serve.fields import FieldError

__all__ = [
    "ClientGoneError",
    "encoded",
    "error_body",
    "events",
    "failure",
    "json_reply",
    "unless_gone",
]

_T = TypeVar("_T")
_STATUS: tuple[tuple[type[MiudoError], int, str, str | None], ...] = (
    (RequestError, 400, "invalid_request_error", None),
    (MissingError, 404, "invalid_request_error", "model_not_found"),
    (BusyError, 429, "rate_limit_error", "server_busy"),
    (DeadlineError, 504, "timeout_error", "deadline_exceeded"),
    (ResourceError, 503, "server_error", "out_of_memory"),
)
_RETRY_AFTER_S = 1


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


def failure(error: MiudoError) -> Response:
    """Returns the reply that tells of an error."""
    status, body = error_body(error)
    headers = {"retry-after": str(_RETRY_AFTER_S)} if status in (429, 503) else {}
    return json_reply(body, status, **headers)


def events(lines: AsyncIterator[bytes]) -> Response:
    """Returns a reply that sends what comes; a client that goes ends the iterator.

    What goes wrong on the way is the last event, in the shape of an error's body.
    """
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_told(lines), headers=headers, media_type="text/event-stream")


async def unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """Returns what `work` gives; cancels it and raises ClientGoneError if the client hangs up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _told(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for line in lines:
            yield line
    except MiudoError as error:
        yield b"data: " + encoded(error_body(error)[1]) + b"\n\n"


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _shape(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
