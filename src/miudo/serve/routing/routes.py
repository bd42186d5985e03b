"""The table of routes with `auto` in it.

For: chats and completions that name `auto`, `/route/explain`, and `auto` in the list of models.
Not for: what happens then (`miudo.serve.routing.cascade`).
Read next: `miudo.serve.routing.cascade`.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, request_response

from miudo.route.targets import AUTO
from miudo.serve.fields import FieldError
from miudo.serve.receiving import BodyLimits, received
from miudo.serve.replies import json_reply
from miudo.serve.routing.asked import CHAT, TEXT, read_asked
from miudo.serve.routing.cascade import Cascade
from miudo.serve.routing.near import Endpoint, passed_to
from miudo.serve.routing.router import Router

__all__ = ["routed"]

_MODELS = "/v1/models"


def routed(table: Sequence[Route], router: Router, limits: BodyLimits) -> list[Route]:
    """Returns `table` with `auto` answered by `router`; other models are answered as before."""
    endpoints: dict[str, Endpoint] = {route.path: route.endpoint for route in table}
    began = int(time.time())

    async def explain(request: Request) -> Response:
        values = (await received(request, limits)).rest()
        path = CHAT if "messages" in values else TEXT
        if values.get("model", AUTO) != AUTO:
            raise FieldError("model", "is not auto", remedy="Leave it out, or give auto")
        asked = read_asked(path, values)
        cascade = Cascade(router, endpoints[path], request, asked)
        return json_reply(await cascade.explained())

    def automatic(path: str) -> Endpoint:
        async def chosen(request: Request) -> Response:
            values = (await received(request, limits)).rest()
            if values.get("model") != AUTO:
                return await passed_to(endpoints[path], request, values)
            asked = read_asked(path, values)
            return await Cascade(router, endpoints[path], request, asked).answered()

        return chosen

    async def models(request: Request) -> Response:
        reply: dict[str, Any] = json.loads(bytes((await endpoints[_MODELS](request)).body))
        auto = {"id": AUTO, "object": "model", "created": began, "owned_by": "miudo"}
        return json_reply({**reply, "data": [*reply["data"], auto]})

    instead: dict[str, Endpoint] = {path: automatic(path) for path in (CHAT, TEXT)}
    instead[_MODELS] = models
    replaced = [_with_endpoint(route, instead.get(route.path)) for route in table]
    return [*replaced, Route("/route/explain", explain, methods=["POST"])]


def _with_endpoint(route: Route, endpoint: Endpoint | None) -> Route:
    if endpoint is None:
        return route
    made = copy.copy(route)
    made.endpoint, made.app = endpoint, request_response(endpoint)
    return made
