"""OpenAI's part of the table of routes.

For: which path of theirs is answered by what.
Not for: the table as a whole (`miudo.serve.app`), or one answer (the modules beside this).
Read next: `miudo.serve.openai.chat`.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from miudo.serve.house import House
from miudo.serve.openai.chat import chat_reply, chat_stream, parse_chat
from miudo.serve.openai.completions import (
    completion_reply,
    completion_stream,
    parse_completion,
)
from miudo.serve.openai.embeddings import embedding_reply, parse_embedding
from miudo.serve.openai.models import model_entry, model_list
from miudo.serve.openai.responses import ResponseStream, parse_response, response_reply
from miudo.serve.receiving import BodyLimits, asked_by, received
from miudo.serve.replies import events, json_reply, unless_gone

__all__ = ["openai_routes"]


def openai_routes(house: House, limits: BodyLimits) -> list[Route]:
    """Returns the routes under `/v1/` that answer in OpenAI's shapes."""

    async def chat(request: Request) -> Response:
        fields = await received(request, limits)
        call = parse_chat(fields, house.named(fields), scope=asked_by(request))
        if call.drawing.stream:
            return events(chat_stream(call))
        return json_reply(await unless_gone(request, chat_reply(call)))

    async def completions(request: Request) -> Response:
        fields = await received(request, limits)
        call = parse_completion(fields, house.named(fields), scope=asked_by(request))
        if call.drawing.stream:
            return events(completion_stream(call))
        return json_reply(await unless_gone(request, completion_reply(call)))

    async def embeddings(request: Request) -> Response:
        fields = await received(request, limits)
        call = parse_embedding(fields, house.named(fields))
        return json_reply(await unless_gone(request, embedding_reply(call)))

    async def responses(request: Request) -> Response:
        fields = await received(request, limits)
        call = parse_response(fields, house.named(fields), scope=asked_by(request))
        if call.drawing.stream:
            stream = ResponseStream(call)
            return events(stream.lines(), told=stream.told)
        return json_reply(await unless_gone(request, response_reply(call)))

    async def models(_: Request) -> Response:
        return json_reply(model_list(house))

    async def model(request: Request) -> Response:
        return json_reply(model_entry(house.get(request.path_params["name"])))

    return [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/responses", responses, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
    ]
