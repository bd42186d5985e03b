"""The table of routes, and how a request reaches one.

For: `make_app`, the whole server as an ASGI application.
Not for: sockets and signals (`miudo.serve.run`).
Read next: `miudo.serve.openai.chat`.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from miudo.errors import MiudoError
from miudo.serve.guard import Guard
from miudo.serve.house import House
from miudo.serve.openai.routes import openai_routes
from miudo.serve.receiving import BodyLimits
from miudo.serve.replies import ClientGoneError, failure, json_reply
from miudo.serve.routing.router import Router
from miudo.serve.routing.routes import routed

__all__ = ["make_app"]


def make_app(
    house: House,
    *,
    keys: Sequence[bytes] = (),
    hosts: Sequence[str] = (),
    limits: BodyLimits | None = None,
    router: Router | None = None,
) -> ASGIApp:
    """Returns the server: what is not in its table is not there, with a key or without.

    With `router` the model `auto` is served too.
    """
    bounds = limits or BodyLimits()

    async def health(_: Request) -> Response:
        alive = all(hosted.worker.alive for hosted in house.models)
        return json_reply({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    table = [
        *openai_routes(house, bounds),
        Route("/health", health),
        Route("/ready", health),
    ]
    if router is not None:
        table = routed(table, router, bounds)
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
