"""Ollama's routes.

For: which path of theirs is answered by what.
Not for: the table as a whole (`miudo.serve.app`), or one answer (the modules beside this).
Read next: `miudo.serve.ollama.generate`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from miudo.errors import MissingError
from miudo.serve.describing import Asked
from miudo.serve.fields import Fields
from miudo.serve.hosted import Hosted
from miudo.serve.house import House
from miudo.serve.ollama.about import model_facts, open_models, open_tags, version
from miudo.serve.ollama.embed import embed_reply, parse_embed
from miudo.serve.ollama.generate import (
    GenerateCall,
    generate_reply,
    generate_stream,
    line,
    parse_chat,
    parse_text,
)
from miudo.serve.receiving import BodyLimits, asked_by, received
from miudo.serve.replies import events, json_reply, unless_gone

__all__ = ["ollama_routes"]

_OPTIONS = {"options": {"num_predict": 8}, "stream": False}
_FORM = {"type": "object", "properties": {"name": {"type": "string"}}}
_TOOL = {"type": "function", "function": {"name": "look", "parameters": _FORM}}
_CALL = {"function": {"name": "look", "arguments": {"name": "x"}}}
_SPOKEN = [{"role": "user", "content": "Hello"}]
_USED = [
    *_SPOKEN,
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "seen", "tool_name": "look"},
]
_TEXTS = ({"prompt": "Hello", **_OPTIONS}, {"prompt": "Hello", "format": _FORM, "raw": True})
_CHATS = (
    {"messages": _SPOKEN, **_OPTIONS},
    {"messages": _SPOKEN, "format": "json"},
    {"messages": _USED, "tools": [_TOOL]},
)


def ollama_routes(house: House, limits: BodyLimits) -> list[Route]:
    """Returns the routes under `/api/`, errors of which have Ollama's shape."""

    def answering(
        parse: Callable[..., Awaitable[GenerateCall]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            fields = await received(request, limits)
            call = await parse(fields, await _named(house, fields), scope=asked_by(request))
            if call.stream:
                lines = generate_stream(call)
                return events(lines, told=line, kind="application/x-ndjson")
            return json_reply(await unless_gone(request, generate_reply(call)))

        return handle

    async def embed(request: Request) -> Response:
        fields = await received(request, limits)
        call = parse_embed(fields, await _named(house, fields))
        return json_reply(await unless_gone(request, embed_reply(call)))

    async def show(request: Request) -> Response:
        fields = await received(request, limits)
        hosted = await _named(house, fields)
        _parse_show(fields, hosted)
        return json_reply(model_facts(hosted))

    async def tags(_: Request) -> Response:
        return json_reply(await open_tags(house))

    async def running(_: Request) -> Response:
        return json_reply(await open_models(house))

    async def told_version(_: Request) -> Response:
        return json_reply(version())

    return [
        Asked("/api/generate", answering(parse_text), parse=_reader(parse_text), samples=_TEXTS),
        Asked("/api/chat", answering(parse_chat), parse=_reader(parse_chat), samples=_CHATS),
        Asked("/api/embed", embed, parse=parse_embed, samples=({"input": "Hello"},)),
        Asked("/api/show", show, parse=_parse_show, samples=({},)),
        Route("/api/tags", tags),
        Route("/api/ps", running),
        Route("/api/version", told_version),
    ]


async def _named(house: House, fields: Fields) -> Hosted:
    """Returns the model that is asked for: this protocol's clients add `:latest` to a name."""
    name = fields.text("model")
    try:
        return await house.get(name)
    except MissingError:
        plain = name.removesuffix(":latest")
        if plain == name:
            raise
        return await house.get(plain)


def _parse_show(fields: Fields, _: Hosted) -> None:
    fields.refuse({"verbose": False})
    fields.end()


def _reader(parse: Callable[..., Awaitable[GenerateCall]]) -> Callable[[Fields, Hosted], object]:
    return lambda fields, hosted: parse(fields, hosted, scope="")
