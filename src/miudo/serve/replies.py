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
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from miudo.errors import DeadlineError, MiudoError
from miudo.serve.errand import current_errand
from miudo.serve.faults import Fault, body_for, fault_of

__all__ = [
    "ClientGoneError",
    "Mould",
    "Told",
    "encoded",
    "events",
    "failure",
    "json_reply",
    "unless_gone",
]

_T = TypeVar("_T")
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_LATE = "the time given for the answer is over"
_HOLE = "\0"
_MOST_BYTES = 64 << 10  # of a stream that wait for a slow reader
_MOST_LINES = 256
Told = Callable[[dict[str, Any]], bytes]
"""Turns an error's body into a line of a protocol's stream."""


class ClientGoneError(Exception):
    """Whoever asked has hung up: there is nobody to answer."""


def encoded(value: Mapping[str, Any]) -> bytes:
    """Returns compact JSON."""
    return _JSON.encode(value).encode()


class Mould:
    """JSON that is the same for every token but for one text: encoded once, filled for each.

    `made` returns the value that has a text in its place.
    """

    def __init__(self, made: Callable[[str], Mapping[str, Any]]) -> None:
        # As bytes a mark of this kind is in no other text: there its quotes have a backslash.
        before, _, after = encoded(made(_HOLE)).rpartition(_JSON.encode(_HOLE).encode())
        self._before, self._after = before, after

    def filled(self, text: str) -> bytes:
        """Returns what `encoded` would of the value with `text`."""
        return self._before + _JSON.encode(text).encode() + self._after


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
        raise DeadlineError(_LATE)
    finally:
        await _ended(task, gone)


class _Stream(Response):
    """Lines as they come, those that are there at once in one piece; begun when there is one.

    No more are made while those that wait for the reader are as many as may.
    """

    def __init__(self, lines: AsyncIterator[bytes], told: Told, kind: str) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(headers=headers, media_type=kind)
        del self.headers["content-length"]
        self._lines, self._told = lines, told
        self._ready: list[bytes] = []
        self._moved = asyncio.Event()  # a line came, the last has come, or the client is gone
        self._room = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Waits for the first line, then sends as they come."""
        made = asyncio.ensure_future(self._gather())
        gone = asyncio.ensure_future(_hung_up(Request(scope, receive)))
        for task in (made, gone):
            task.add_done_callback(lambda _: self._moved.set())
        try:
            await self._first(made, gone)
            head = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **head})
            while not gone.done():
                self._moved.clear()
                over, body = made.done(), b"".join(self._ready)
                self._ready.clear()
                self._room.set()
                if over and body and made.exception() is not None:
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                    body = b""
                if over:
                    body += self._end(made, str(scope["path"]))
                if body or over:
                    await send({"type": "http.response.body", "body": body, "more_body": not over})
                if over:
                    return
                await self._moved.wait()
        finally:
            await _ended(made, gone)

    async def _gather(self) -> None:
        size = 0
        try:
            async for line in self._lines:
                size = size + len(line) if self._ready else len(line)
                self._ready.append(line)
                self._moved.set()
                if size >= _MOST_BYTES or len(self._ready) >= _MOST_LINES:
                    self._room.clear()
                    await self._room.wait()
        finally:
            if isinstance(self._lines, AsyncGenerator):
                await self._lines.aclose()

    async def _first(self, made: asyncio.Future[None], gone: asyncio.Future[None]) -> None:
        """Waits until there is a line, and raises what comes in its place."""
        try:
            async with asyncio.timeout(current_errand().left_s(None)):
                await self._moved.wait()
        except TimeoutError as error:
            raise DeadlineError(_LATE) from error
        if self._ready:
            return
        if made.done():
            made.result()
        raise ClientGoneError

    def _end(self, made: asyncio.Future[None], path: str) -> bytes:
        """Returns the line that tells of what ended the stream early, if anything did."""
        try:
            made.result()
        except MiudoError as error:
            return self._told(body_for(path, fault_of(error)))
        return b""


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + encoded(value) + b"\n\n"


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
