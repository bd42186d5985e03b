"""OpenAI's part of the table of routes.

For: which path of theirs is answered by what.
Not for: the table as a whole (`miudo.serve.app`), or one answer (the modules beside this).
Read next: `miudo.serve.openai.chat`.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from miudo.serve.describing import Asked
from miudo.serve.fields import Fields
from miudo.serve.hosted import Hosted
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

_OPTIONS = {"stream": True, "stream_options": {"include_usage": True}}
_SPOKEN = [{"role": "user", "content": "Hello"}]
_FORM = {"type": "object", "properties": {"name": {"type": "string"}}}
_LOOK = {"name": "look", "description": "Looks.", "parameters": _FORM}
_CALL = {"id": "123456789", "type": "function", "function": {"name": "look", "arguments": "{}"}}
_USED = [
    *_SPOKEN,
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "seen", "tool_call_id": "123456789"},
]
_CHATS: tuple[dict[str, Any], ...] = (
    {"messages": _SPOKEN, "max_tokens": 8, "max_completion_tokens": 8, "logprobs": True},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}], **_OPTIONS},
    {
        "messages": _SPOKEN,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "form", "schema": _FORM},
        },
    },
    {"messages": _SPOKEN, "structured_outputs": {"json": _FORM}},
    {
        "messages": _USED,
        "tools": [{"type": "function", "function": _LOOK}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
    },
)
_COMPLETIONS = (
    {"prompt": "Once", "max_tokens": 8, "logprobs": 1},
    {"prompt": [5, 6], **_OPTIONS},
    {"prompt": ["Once", "Twice"], "echo": True},
)
_EMBEDDINGS = ({"input": "Hello"}, {"input": ["Hello"]}, {"input": [5, 6]})
_RESPONSES: tuple[dict[str, Any], ...] = (
    {"input": "Hello"},
    {"input": _SPOKEN, "stream": True},
    {
        "input": "Hello",
        "text": {"format": {"type": "json_schema", "name": "form", "schema": _FORM}},
        "max_output_tokens": 8,
    },
    {
        "input": [
            {"type": "function_call", "call_id": "123456789", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "123456789", "output": "seen"},
        ],
        "tools": [{"type": "function", **_LOOK}],
        "tool_choice": {"type": "function", "name": "look"},
        "max_output_tokens": 8,
    },
)


def openai_routes(house: House, limits: BodyLimits) -> list[Route]:
    """Returns the routes under `/v1/` that answer in OpenAI's shapes."""

    async def chat(request: Request) -> Response:
        fields = await received(request, limits)
        call = await parse_chat(fields, await house.named(fields), scope=asked_by(request))
        if call.drawing.stream:
            return events(chat_stream(call))
        return json_reply(await unless_gone(request, chat_reply(call)))

    async def completions(request: Request) -> Response:
        fields = await received(request, limits)
        call = await parse_completion(fields, await house.named(fields), scope=asked_by(request))
        if call.drawing.stream:
            return events(completion_stream(call))
        return json_reply(await unless_gone(request, completion_reply(call)))

    async def embeddings(request: Request) -> Response:
        fields = await received(request, limits)
        call = parse_embedding(fields, await house.named(fields))
        return json_reply(await unless_gone(request, embedding_reply(call)))

    async def responses(request: Request) -> Response:
        fields = await received(request, limits)
        call = await parse_response(fields, await house.named(fields), scope=asked_by(request))
        if call.drawing.stream:
            stream = ResponseStream(call)
            return events(stream.lines(), told=stream.told)
        return json_reply(await unless_gone(request, response_reply(call)))

    async def models(_: Request) -> Response:
        return json_reply(model_list(house))

    async def model(request: Request) -> Response:
        return json_reply(model_entry(house.opened(request.path_params["name"])))

    return [
        Asked("/v1/chat/completions", chat, parse=_parse_chat, samples=_CHATS),
        Asked("/v1/completions", completions, parse=_parse_completion, samples=_COMPLETIONS),
        Asked("/v1/embeddings", embeddings, parse=parse_embedding, samples=_EMBEDDINGS),
        Asked("/v1/responses", responses, parse=_parse_response, samples=_RESPONSES),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
    ]


async def _parse_chat(fields: Fields, hosted: Hosted) -> object:
    return await parse_chat(fields, hosted, scope="")


async def _parse_completion(fields: Fields, hosted: Hosted) -> object:
    return await parse_completion(fields, hosted, scope="")


async def _parse_response(fields: Fields, hosted: Hosted) -> object:
    return await parse_response(fields, hosted, scope="")
