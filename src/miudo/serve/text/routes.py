"""Routes about a text: the names that llama.cpp's server has, and `/suggest`.

For: which path of theirs is answered by what.
Not for: the table as a whole (`miudo.serve.app`), or one answer (`tools` beside this).
Read next: `miudo.serve.text.tools`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from miudo.serve.describing import Asked
from miudo.serve.fields import Fields
from miudo.serve.hosted import Hosted
from miudo.serve.house import House
from miudo.serve.receiving import BodyLimits, received
from miudo.serve.replies import json_reply, unless_gone
from miudo.serve.text.tools import Suggesters, applied, detokenized, tokenized

__all__ = ["text_routes"]

_SPOKEN = {"messages": [{"role": "user", "content": "Hello"}]}


def text_routes(house: House, limits: BodyLimits) -> list[Route]:
    """Returns the routes; errors have OpenAI's shape."""
    suggesters = Suggesters()

    def told(
        tool: Callable[[Fields, Hosted], dict[str, Any]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            fields = await received(request, limits)
            # Beside the event loop: a text may be as long as a body.
            return json_reply(await asyncio.to_thread(tool, fields, await house.named(fields)))

        return handle

    async def suggest(request: Request) -> Response:
        fields = await received(request, limits)
        work = suggesters.suggested(fields, await house.named(fields))
        return json_reply(await unless_gone(request, work))

    return [
        Asked("/tokenize", told(tokenized), parse=tokenized, samples=({"content": "Hello"},)),
        Asked("/detokenize", told(detokenized), parse=detokenized, samples=({"tokens": [5]},)),
        Asked("/apply-template", told(applied), parse=applied, samples=(_SPOKEN,)),
        Asked("/suggest", suggest, parse=suggesters.suggested, samples=({"text": "One"},)),
    ]
