"""The table of routes, and how a request reaches one.

For: `make_app`, the whole server as an ASGI application.
Not for: sockets and signals (`miudo.serve.run`).
Read next: `miudo.serve.openai.chat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from miudo.errors import MiudoError
from miudo.serve.anthropic.routes import anthropic_routes
from miudo.serve.describing import describing_route
from miudo.serve.errand import current_errand
from miudo.serve.faults import Fault, fault_of
from miudo.serve.guard import Guard, Rules
from miudo.serve.house import House
from miudo.serve.inspect.routes import inspect_routes
from miudo.serve.logs import Log
from miudo.serve.ollama.routes import ollama_routes
from miudo.serve.openai.routes import openai_routes
from miudo.serve.operating import operating_routes
from miudo.serve.page.routes import page_paths, page_routes
from miudo.serve.receiving import BodyLimits
from miudo.serve.replies import ClientGoneError, failure
from miudo.serve.standing import Standing
from miudo.serve.text.routes import text_routes
from miudo.serve.watch import Watch

if TYPE_CHECKING:
    from miudo.serve.routing.router import Router

__all__ = ["make_app", "route_table"]

_ANSWERING = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/api/chat",
        "/api/generate",
    }
)
"""Whose requests wait in the models' queues, all but those without a draw: completions that only
echo, `/api/chat` and `/api/generate` without a text. While all is full these hear 429 too."""


def route_table(
    house: House, standing: Standing, limits: BodyLimits, router: Router | None = None
) -> list[Route]:
    """Returns every route there is; with `router` the model `auto` is answered too."""
    table = [
        *openai_routes(house, limits),
        *anthropic_routes(house, limits),
        *ollama_routes(house, limits),
        *text_routes(house, limits),
        *inspect_routes(house, limits),
        *operating_routes(house, standing, limits),
        *page_routes(),
    ]
    if router is not None:
        from miudo.serve.routing.routes import routed  # with an HTTP client: a seventh of all

        table = routed(table, router, limits)
    return [*table, describing_route(house, table)]


def make_app(
    house: House,
    standing: Standing,
    log: Log,
    rules: Rules | None = None,
    router: Router | None = None,
) -> ASGIApp:
    """Returns the server: what is not in its table is not there, with a key or without."""
    rules = rules or Rules()
    table = route_table(house, standing, rules.limits, router)
    paths = [route.path for route in table]

    async def told(request: Request, error: Exception) -> Response:
        fault = fault_of(error if isinstance(error, MiudoError) else MiudoError(""))
        if fault.status == 500:
            log.failure("error", error, id=current_errand().id)
        return failure(str(request.scope["path"]), fault)

    async def first_told(request: Request, error: Exception) -> Response:
        """Of answers made beside each other the first that failed speaks for all."""
        first = error
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        return await told(request, first)

    async def not_here(request: Request, error: Exception) -> Response:
        known = error if isinstance(error, HTTPException) else HTTPException(500)
        headers = dict(known.headers or {})
        path = str(request.scope["path"])
        message = known.detail
        if known.status_code == 404:
            message = f"there is no such route. {_cure(path, paths)}"
        elif known.status_code == 405:
            message = f"{request.method} is not taken here, only {headers.get('Allow')}"
        return failure(path, Fault(known.status_code, message), **headers)

    handlers = {
        MiudoError: told,
        HTTPException: not_here,
        ClientGoneError: _gone,
        ClientDisconnect: _gone,
        ExceptionGroup: first_told,
        Exception: _failed,  # and it is raised again: the log has it from uvicorn
    }
    app = Starlette(routes=table, exception_handlers=handlers)
    app.router.redirect_slashes = False
    guard = Guard(
        app,
        standing,
        rules,
        open_paths=page_paths(),
        full=lambda path: path in _ANSWERING and router is None and house.full,
    )
    return Watch(guard, standing, log, paths=paths, deadline_s=rules.deadline_s)


def _cure(path: str, paths: Sequence[str]) -> str:
    """What to ask in place of `path`: clients whose base URL lacks /v1, or has it twice."""
    bare = path.rstrip("/")
    for near in (bare, f"/v1{bare}", bare.removeprefix("/v1")):
        if near in paths and near != path:
            return f"Did you mean {near}?"
    return "GET /openapi.json lists the routes"


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)


async def _failed(request: Request, _: Exception) -> Response:
    return failure(str(request.scope["path"]), fault_of(MiudoError("")))
