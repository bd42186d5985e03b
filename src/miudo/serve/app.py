"""The table of routes, and how a request reaches one.

For: `make_app`, the whole server as an ASGI application.
Not for: sockets and signals (`miudo.serve.run`).
Read next: `miudo.serve.openai.chat`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from miudo.errors import MiudoError
from miudo.serve.fields import Fields, parse_body
from miudo.serve.guard import Guard
from miudo.serve.house import House
from miudo.serve.openai.chat import chat_reply, chat_stream, parse_chat
from miudo.serve.openai.completions import (
    completion_reply,
    completion_stream,
    parse_completion,
)
from miudo.serve.openai.models import model_entry, model_list
from miudo.serve.replies import ClientGoneError, events, failure, json_reply, unless_gone

__all__ = ["ServeLimits", "make_app"]

_Handler = Callable[[Request, House], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class ServeLimits:
    """What a request's body may take: bytes, and seconds to arrive."""

    body_bytes: int = 8 << 20
    body_s: float = 30.0


def make_app(
    house: House,
    *,
    keys: Sequence[bytes] = (),
    hosts: Sequence[str] = (),
    limits: ServeLimits | None = None,
) -> ASGIApp:
    """Returns the server: what is not in its table is not there, with a key or without."""
    bounds = limits or ServeLimits()

    async def chat(request: Request) -> Response:
        fields = await _fields(request, bounds)
        call = parse_chat(fields, house.named(fields), scope=_scope(request))
        if call.drawing.stream:
            return events(chat_stream(call))
        return json_reply(await unless_gone(request, chat_reply(call)))

    async def completions(request: Request) -> Response:
        fields = await _fields(request, bounds)
        call = parse_completion(fields, house.named(fields), scope=_scope(request))
        if call.drawing.stream:
            return events(completion_stream(call))
        return json_reply(await unless_gone(request, completion_reply(call)))

    async def models(_: Request) -> Response:
        return json_reply(model_list(house))

    async def model(request: Request) -> Response:
        return json_reply(model_entry(house.get(request.path_params["name"])))

    async def health(_: Request) -> Response:
        alive = all(hosted.worker.alive for hosted in house.models)
        return json_reply({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    table = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", health),
        Route("/ready", health),
    ]
    handlers = {
        MiudoError: _told,
        HTTPException: _not_here,
        ClientGoneError: _gone,
        ClientDisconnect: _gone,
        ExceptionGroup: _first_told,
        Exception: _failed,
    }
    app = Starlette(routes=table, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Guard(app, keys=keys, hosts=hosts)


async def _fields(request: Request, limits: ServeLimits) -> Fields:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "the body must be application/json")
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise HTTPException(413, f"the body has more than {limits.body_bytes} bytes")
                parts.append(part)
    except TimeoutError as error:
        raise HTTPException(408, "the body did not arrive in time") from error
    return Fields(parse_body(b"".join(parts)))


def _scope(request: Request) -> str:
    return str(request.scope["miudo.scope"])


async def _told(_: Request, error: Exception) -> Response:
    return failure(error if isinstance(error, MiudoError) else MiudoError(""))


async def _first_told(request: Request, error: Exception) -> Response:
    """Of answers made beside each other the first that failed speaks for all."""
    first = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
    return await _told(request, first)


async def _not_here(_: Request, error: Exception) -> Response:
    known = error if isinstance(error, HTTPException) else HTTPException(500)
    body = {"message": known.detail, "type": "invalid_request_error", "param": None, "code": None}
    return json_reply({"error": body}, known.status_code, **dict(known.headers or {}))


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)


async def _failed(_: Request, __: Exception) -> Response:
    return failure(MiudoError(""))
