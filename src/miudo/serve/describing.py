"""`/openapi.json`: the table of routes, described by the very code that reads requests.

For: clients and fuzzers. A route's parser reads samples while each field that it takes tells its
name and bounds: there is no second list that could say something else.
Not for: reading requests (`miudo.serve.fields`).
Read next: `miudo.serve.fields`.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from miudo import __version__
from miudo.errors import RequestError
from miudo.serve.fields import WATCHED, Fields
from miudo.serve.hosted import Hosted
from miudo.serve.house import House, model_field
from miudo.serve.replies import json_reply

__all__ = ["Asked", "describing_route"]

_Parse = Callable[[Fields, Hosted], object]
_Schema = dict[str, Any]


class Asked(Route):
    """A POST route with a JSON body, which `parse` reads, at once or as a coroutine.

    It must accept all `samples`, unless the model lacks what one asks for, such as a chat template;
    together they hold every field whose reading hangs on another.
    A route of a model has `model` read by `House.named`; others read all fields on their own.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[[Request], Awaitable[Response]],
        *,
        parse: _Parse,
        samples: Sequence[Mapping[str, Any]],
    ) -> None:
        super().__init__(path, endpoint, methods=["POST"])
        self.parse, self.samples = parse, samples


def describing_route(house: House, table: Sequence[Route]) -> Route:
    """Returns the route that describes `table` and itself."""

    async def openapi(_: Request) -> Response:
        hosted = await house.get(None)
        return json_reply(await _description([*table, own], hosted))

    own = Route("/openapi.json", openapi)
    return own


async def _description(table: Sequence[Route], hosted: Hosted) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for route in table:
        path = re.sub(r":\w+(?=})", "", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = await _operation(route, path, hosted)
    error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "object"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "miudo", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {"Error": error},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


async def _operation(route: Route, path: str, hosted: Hosted) -> dict[str, Any]:
    told = {"schema": {"$ref": "#/components/schemas/Error"}}
    replies = {
        "200": {"description": "The answer."},
        "default": {"description": "An error.", "content": {"application/json": told}},
    }
    operation: dict[str, Any] = {"operationId": f"{route.name} {path}", "responses": replies}
    if isinstance(route, Asked):
        content = {
            "schema": await _body_schema(route, hosted),
            "examples": _examples(route.samples),
        }
        operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    names = re.findall(r"{(\w+)}", path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    return operation


def _examples(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {str(i): {"value": sample} for i, sample in enumerate(samples)}


async def _body_schema(route: Asked, hosted: Hosted) -> _Schema:
    """Returns what the parser reads: names and bounds as it tells them.

    Types of raw values are those of the samples; required is what it does not do without.
    """
    found: dict[str, _Schema] = {}

    def note(name: str, schema: Mapping[str, Any]) -> None:
        found.setdefault(name, {}).update(schema)

    token = WATCHED.set(note)
    try:
        for sample in route.samples:
            with contextlib.suppress(RequestError):  # this model's own: all was read before
                await _read(route, sample, hosted)
    finally:
        WATCHED.reset(token)
    root: _Schema = {"type": "object", "properties": {}, "additionalProperties": False}
    for name, schema in found.items():
        _place(root, re.findall(r"[^.\[\]]+|\[\d+\]", name), schema)
    for name, schema in root["properties"].items():
        values = [sample[name] for sample in route.samples if name in sample]
        if not schema and values:
            schema["anyOf"] = _distinct([_type_of(value) for value in values])
    first = route.samples[0]
    root["required"] = [
        name
        for name in first
        if await _goes_without(route, first, None, hosted)
        and not await _goes_without(route, first, name, hosted)
    ]
    return root


async def _read(route: Asked, sample: Mapping[str, Any], hosted: Hosted) -> None:
    fields = Fields(copy.deepcopy(dict(sample)))
    if "model" not in sample:
        model_field(fields)
    parsed = route.parse(fields, hosted)
    if inspect.isawaitable(parsed):
        await parsed


async def _goes_without(
    route: Asked, sample: Mapping[str, Any], name: str | None, hosted: Hosted
) -> bool:
    try:
        await _read(route, {key: value for key, value in sample.items() if key != name}, hosted)
    except RequestError:
        return False
    return True


def _place(node: _Schema, parts: list[str], schema: _Schema) -> None:
    """Puts a field's schema where its name leads: `messages[0].role` into the items."""
    for part in parts:
        if part.startswith("["):
            node["type"] = "array"
            node = node.setdefault("items", {})
        else:
            node["type"] = "object"
            node = node.setdefault("properties", {}).setdefault(part, {})
    node.update(schema)


def _type_of(value: Any) -> _Schema:
    if isinstance(value, list):
        return {"type": "array", "items": _type_of(value[0])}
    names: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}
    return {"type": names.get(type(value), "object")}


def _distinct(schemas: list[_Schema]) -> list[_Schema]:
    return [schema for i, schema in enumerate(schemas) if schema not in schemas[:i]]
