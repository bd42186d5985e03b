"""Which JSON Schemas can be held to: checked keyword by keyword before any grammar is made.

For: a refusal that names the keyword and where it stands. What is let through is enforced; a
keyword that would be passed over in silence (a misspelt one, too) is refused.
Not for: making the grammar (`miudo.engine.grammars`), which refuses what contradicts itself.
Read next: `miudo.engine.grammars`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from miudo.errors import RequestError

__all__ = ["MOST_BYTES", "MOST_CHOICES", "MOST_REPEATS", "MOST_SCHEMAS", "check_schema", "closed"]

MOST_BYTES = 1 << 17
MOST_SCHEMAS = 4096
MOST_CHOICES = 4096
MOST_REPEATS = 10_000
_MOST_DEEP = 48
_MOST_PATTERN = 2048

_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions")
_OF_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_ONE = ("items", "additionalProperties")
_COUNTS = (
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
)  # fmt: skip
_VALUES = (
    "type", "enum", "const", "required", "pattern", "format", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "$ref",
)  # fmt: skip
_NOTES = (
    "$schema", "$comment", "title", "description", "default", "examples", "example",
    "deprecated", "readOnly", "writeOnly",
)  # fmt: skip
_KNOWN = frozenset((*_OF_NAMES, *_OF_LISTS, *_ONE, *_COUNTS, *_VALUES, *_NOTES))


def closed(schema: Any) -> Any:
    """Returns an object's schema without further properties, where it leaves that open.

    What it takes is a part of what `schema` takes. A weak model that may go on with names of its
    own does so without end. Schemas that are put together of others are left as they are.
    """
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
        return schema
    said = ("additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref")
    required = schema.get("required", [])
    named = isinstance(required, list) and all(
        isinstance(name, str) and name in schema["properties"] for name in required
    )
    if not named or any(word in schema for word in said):
        return schema
    return {**schema, "additionalProperties": False}


def check_schema(schema: Any, where: str = "schema") -> None:
    """Looks at every part of a schema; `where` is what errors call its root.

    Raises RequestError for a keyword that cannot be enforced, a reference that leads out of the
    schema, and what is too large or too deep.
    """
    if not isinstance(schema, dict | bool):
        raise RequestError("is no JSON Schema", where=where, remedy="Give an object")
    try:
        size = len(json.dumps(schema, ensure_ascii=False))
    except RecursionError:
        size = MOST_BYTES + 1
    if size > MOST_BYTES:
        raise RequestError(
            f"has more than {MOST_BYTES} characters", where=where, remedy="Give a smaller schema"
        )
    waiting = [(schema, where, 0)]
    for seen in range(MOST_SCHEMAS):
        if not waiting:
            return
        part, path, depth = waiting.pop()
        if depth > _MOST_DEEP:
            raise RequestError(f"is nested deeper than {_MOST_DEEP}", where=path)
        if isinstance(part, bool):
            continue
        _check_values(part, path, is_root=seen == 0)
        waiting += [(inner, at, depth + 1) for inner, at in _parts(part, path)]
    raise RequestError(
        f"has more than {MOST_SCHEMAS} parts", where=where, remedy="Give a smaller schema"
    )


def _parts(part: dict[str, Any], path: str) -> Iterator[tuple[Any, str]]:
    for keyword, value in part.items():
        at = f"{path}.{keyword}"
        inner: list[tuple[Any, str]] = []
        if keyword in _OF_NAMES:
            if not isinstance(value, dict):
                raise RequestError("is no object of schemas", where=at)
            inner = [(each, f"{at}.{name}") for name, each in value.items()]
        elif keyword in _OF_LISTS:
            if not isinstance(value, list) or not value:
                raise RequestError("is no list of schemas", where=at, remedy="Give at least one")
            inner = [(each, f"{at}[{i}]") for i, each in enumerate(value)]
        elif keyword in _ONE:
            inner = [(value, at)]
        for each, name in inner:
            if not isinstance(each, dict | bool):
                raise RequestError("is no schema", where=name, remedy="Give an object")
        yield from inner


def _check_values(part: dict[str, Any], path: str, *, is_root: bool) -> None:
    for keyword, value in part.items():
        at = f"{path}.{keyword}"
        if keyword == "$id" and is_root and isinstance(value, str):
            continue  # a name; references by it lead out all the same
        if keyword not in _KNOWN:
            raise RequestError("cannot be enforced", where=at[:300], remedy="Leave the keyword out")
        if keyword in _COUNTS and not (_is_whole(value) and value >= 0):
            raise RequestError(f"is {value!r:.60}", where=at, remedy="Give a whole number from 0")
        if keyword in _COUNTS and keyword.startswith("min") and value > MOST_REPEATS:
            raise RequestError(f"is {value}, the limit is {MOST_REPEATS}", where=at)
        if keyword == "$ref" and not _is_inside(value):
            raise RequestError(
                f"is {value!r:.100}", where=at, remedy="Refer to a part of the schema, as #/$defs/x"
            )
        if keyword == "enum" and not (isinstance(value, list) and len(value) <= MOST_CHOICES):
            raise RequestError(f"is no list of up to {MOST_CHOICES} values", where=at)
        if keyword == "pattern" and not (isinstance(value, str) and len(value) <= _MOST_PATTERN):
            raise RequestError(f"is no text of up to {_MOST_PATTERN} characters", where=at)


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_inside(value: Any) -> bool:
    return isinstance(value, str) and (value == "#" or value.startswith("#/"))
