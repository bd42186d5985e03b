"""Asks a model of this server, through the protocol's own route.

For: an answer as JSON with its confidence, or the stream as it comes.
Not for: another server (`miudo.serve.routing.far`).
Read next: `miudo.serve.routing.cascade`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from miudo.route.confidence import Confidence, confidence
from miudo.route.targets import Measure
from miudo.serve.replies import encoded
from miudo.serve.routing.asked import CHAT, Asked

__all__ = ["Endpoint", "passed_to", "whole_answer"]

Endpoint = Callable[[Request], Awaitable[Response]]
"""A route of this server, such as that of chats."""


async def passed_to(endpoint: Endpoint, request: Request, body: Mapping[str, Any]) -> Response:
    """Returns what `endpoint` replies to the same request with another body."""
    content, scope = encoded(body), dict(request.scope)
    held = (b"content-length", b"transfer-encoding")
    headers = [pair for pair in scope["headers"] if pair[0].lower() not in held]
    scope["headers"] = [*headers, (b"content-length", b"%d" % len(content))]
    parts = [content]

    async def receive() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        return await request.receive()

    return await endpoint(Request(scope, receive))


async def whole_answer(
    endpoint: Endpoint, request: Request, asked: Asked, model: str, measure: Measure | None
) -> tuple[dict[str, Any], float | None]:
    """Returns the reply's JSON and, where `measure` is given, its least sure choice's confidence.

    Log-probabilities that the client did not ask for are taken out again.
    """
    body = asked.for_target(model)
    if measure is not None:
        body |= _with_chances(asked, 2 if measure == "margin" else 0)
    response = await passed_to(endpoint, request, body)
    reply: dict[str, Any] = json.loads(bytes(response.body))
    if measure is None:
        return reply, None
    sure = min(_confidence(asked.path, choice).by(measure) for choice in reply["choices"])
    return _as_asked(asked, reply), sure


def _with_chances(asked: Asked, top: int) -> dict[str, Any]:
    if asked.path == CHAT:
        given = asked.body.get("top_logprobs")
        wanted = max(top, given) if type(given) is int else top
        # Wrong values go as they are: the target refuses them by name.
        odd = given is not None and (type(given) is not int or asked.body.get("logprobs") is None)
        return {} if odd else {"logprobs": True, "top_logprobs": wanted}
    given = asked.body.get("logprobs")
    return {
        "logprobs": top if given is None else (max(top, given) if type(given) is int else given)
    }


def _confidence(path: str, choice: Mapping[str, Any]) -> Confidence:
    logprobs = choice["logprobs"]
    if path == CHAT:
        content = logprobs["content"]
        tops = [[top["logprob"] for top in token["top_logprobs"]] for token in content]
        chances = [token["logprob"] for token in content]
    else:
        chances = logprobs["token_logprobs"]
        tops = [sorted(top.values(), reverse=True) for top in logprobs["top_logprobs"]]
    best = [(top[0], top[1]) for top in tops] if all(len(t) > 1 for t in tops) and tops else None
    return confidence(chances, best)


def _as_asked(asked: Asked, reply: dict[str, Any]) -> dict[str, Any]:
    chat = asked.path == CHAT
    wanted = asked.body.get("logprobs")
    for choice in reply["choices"]:
        if wanted is None or wanted is False:
            choice["logprobs"] = None
        elif chat:
            for token in choice["logprobs"]["content"]:
                del token["top_logprobs"][asked.body.get("top_logprobs") or 0 :]
        else:
            tops = choice["logprobs"]["top_logprobs"]
            choice["logprobs"]["top_logprobs"] = [_best(top, wanted) for top in tops]
    return reply


def _best(top: Mapping[str, float], n: int) -> dict[str, float]:
    """The n most probable, least probable first as they came."""
    kept = sorted(top, key=lambda token: -top[token])[:n]
    return {token: p for token, p in top.items() if token in kept}
