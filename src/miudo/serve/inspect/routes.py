"""The table of routes under `/inspect/`.

For: which path is answered by what.
Not for: one answer (the modules beside this).
Read next: `miudo.serve.inspect.attention`.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from miudo.serve.describing import Asked
from miudo.serve.house import House
from miudo.serve.inspect.attention import attention_reply, parse_attention
from miudo.serve.inspect.identity import identity_reply
from miudo.serve.inspect.lens import lens_reply, parse_lens
from miudo.serve.receiving import BodyLimits, received
from miudo.serve.replies import json_reply, unless_gone

__all__ = ["inspect_routes"]

_ATTENTION = ({"content": "Hello"}, {"content": [5, 6], "layers": [0]})
_LENS = ({"content": "Hello"}, {"content": [5, 6]})


def inspect_routes(house: House, limits: BodyLimits) -> list[Route]:
    """Returns the routes that show a model's insides."""

    async def attention(request: Request) -> Response:
        fields = await received(request, limits)
        call = parse_attention(fields, await house.named(fields))
        return json_reply(await unless_gone(request, attention_reply(call)))

    async def lens(request: Request) -> Response:
        fields = await received(request, limits)
        call = parse_lens(fields, await house.named(fields))
        return json_reply(await unless_gone(request, lens_reply(call)))

    async def model(request: Request) -> Response:
        hosted = await house.get(request.path_params["name"])
        return json_reply(await identity_reply(hosted))

    return [
        Asked("/inspect/attention", attention, parse=parse_attention, samples=_ATTENTION),
        Asked("/inspect/lens", lens, parse=parse_lens, samples=_LENS),
        Route("/inspect/model/{name:path}", model),
    ]
