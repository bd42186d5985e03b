"""JSON Schemas at random: what clients send, what they might, and what cannot be held to.

For: asking of many schemas whether every answer is valid, refused by name, or cut by length.
Not for: schemas that are meant to harm (`tests/serve/test_guided_abuse.py`).
Read next: `benchmarks/guided.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

__all__ = ["random_schema"]

Schema = dict[str, Any]

_NAMES = ("name", "age", "tags", "a b", 'q"t', "größe", "x-1", "_", "unit", "at")
_PATTERNS = ("^[a-z]{2,5}$", "^[A-Z][0-9]{3}$", "[0-9]+", "^(on|off)$", "a.b", "^x", r"^\d\d$", "é")
_FORMATS = ("date", "time", "date-time", "uuid", "email", "ipv4", "hostname", "nonsense")
_UNENFORCED: tuple[Schema, ...] = (
    {"not": {"type": "string"}},
    {"uniqueItems": True},
    {"contains": {"type": "integer"}},
    {"if": {"type": "string"}, "then": {"minLength": 2}},
    {"propertyNames": {"pattern": "^a"}},
    {"dependentRequired": {"a": ["b"]}},
    {"unevaluatedProperties": False},
    {"requird": ["name"]},
)


def random_schema(random: Random, depth: int = 3) -> Schema:
    """Returns a schema up to `depth` parts deep; one part in forty cannot be enforced."""
    kinds: list[Callable[[Random, int], Schema]] = [
        _string, _number, _integer, _constant, _choice, _types, _nothing,
    ]  # fmt: skip
    if depth > 0:
        kinds += [_object, _object, _object, _object, _array, _array, _array, _any, _all, _one]
    schema = random.choice(kinds)(random, depth)
    if random.random() < 0.2:
        schema |= {"description": "what it is", "title": "T"}
    if random.random() < 0.025:
        schema |= random.choice(_UNENFORCED)
    if depth == 3 and random.random() < 0.15:
        schema = _with_reference(random, schema)
    return schema


def _string(random: Random, _: int) -> Schema:
    schema: Schema = {"type": "string"}
    kind = random.random()
    if kind < 0.25:
        schema["minLength"] = random.randrange(6)
    if 0.15 < kind < 0.4:
        schema["maxLength"] = schema.get("minLength", 0) + random.randrange(9)
    if 0.4 < kind < 0.6:
        schema["pattern"] = random.choice(_PATTERNS)
    if 0.6 < kind < 0.7:
        schema["format"] = random.choice(_FORMATS)
    if 0.58 < kind < 0.62:
        schema["minLength"] = 3
    return schema


def _number(random: Random, _: int) -> Schema:
    return _bounded(random, {"type": "number"}, lambda: round(random.uniform(-50, 50), 2))


def _integer(random: Random, _: int) -> Schema:
    schema = _bounded(random, {"type": "integer"}, lambda: random.randrange(-500, 500))
    if random.random() < 0.15:
        schema["multipleOf"] = random.choice((2, 5, 10, 3))
    return schema


def _bounded(random: Random, schema: Schema, value: Callable[[], float]) -> Schema:
    low = value()
    if random.random() < 0.35:
        schema[random.choice(("minimum", "exclusiveMinimum"))] = low
    if random.random() < 0.35:
        schema[random.choice(("maximum", "exclusiveMaximum"))] = low + abs(value()) - 1
    return schema


def _constant(random: Random, _: int) -> Schema:
    return {"const": _value(random, 2)}


def _choice(random: Random, _: int) -> Schema:
    schema: Schema = {"enum": [_value(random, 1) for _ in range(random.randrange(1, 6))]}
    return schema | ({"type": "string"} if random.random() < 0.2 else {})


def _types(random: Random, _: int) -> Schema:
    kinds = ("string", "integer", "number", "boolean", "null", "object", "array")
    return {"type": random.sample(kinds, random.randrange(1, 4))}


def _nothing(random: Random, _: int) -> Schema:
    return {} if random.random() < 0.5 else {"minLength": 2, "minimum": 3, "minItems": 1}


def _object(random: Random, depth: int) -> Schema:
    names = random.sample(_NAMES, random.randrange(0, 5))
    schema: Schema = {"type": "object"}
    schema["properties"] = {name: random_schema(random, depth - 1) for name in names}
    if random.random() < 0.7:
        schema["required"] = [n for n in _NAMES if n in names and random.random() < 0.7]
    if random.random() < 0.05:
        schema.setdefault("required", []).append("elsewhere")
    kind = random.random()
    if kind < 0.5:
        schema["additionalProperties"] = False
    elif kind < 0.65:
        schema["additionalProperties"] = random_schema(random, depth - 1)
    if random.random() < 0.08:
        schema["patternProperties"] = {"^p[0-9]$": random_schema(random, depth - 1)}
    if random.random() < 0.08:
        schema["minProperties"] = random.randrange(4)
    if random.random() < 0.08:
        schema["maxProperties"] = random.randrange(1, 5)
    return schema


def _array(random: Random, depth: int) -> Schema:
    schema: Schema = {"type": "array"}
    if random.random() < 0.8:
        schema["items"] = random_schema(random, depth - 1)
    if random.random() < 0.2:
        schema["prefixItems"] = [random_schema(random, depth - 1) for _ in range(2)]
        schema["items"] = random.choice([False, {"type": "integer"}])
    if random.random() < 0.4:
        schema["minItems"] = random.randrange(3)
    if random.random() < 0.5:
        schema["maxItems"] = schema.get("minItems", 0) + random.randrange(3)
    return schema


def _any(random: Random, depth: int) -> Schema:
    return {"anyOf": [random_schema(random, depth - 1) for _ in range(random.randrange(1, 4))]}


def _one(random: Random, depth: int) -> Schema:
    if random.random() < 0.5:  # told apart by a constant, as typed models are written
        kinds = [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "value": random_schema(random, depth - 1)},
                "required": ["kind", "value"],
            }
            for kind in ("circle", "square")
        ]
        return {"oneOf": kinds}
    return {"oneOf": [random_schema(random, depth - 1) for _ in range(2)]}


def _all(random: Random, depth: int) -> Schema:
    return {"allOf": [_object(random, depth - 1), _object(random, depth - 1)]}


def _with_reference(random: Random, schema: Schema) -> Schema:
    node = {
        "type": "object",
        "properties": {"value": schema, "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    if random.random() < 0.5:
        return node
    inner = {"$ref": random.choice(("#/$defs/part", "#/$defs/part", "#/$defs/nowhere"))}
    return {"type": "array", "items": inner, "maxItems": 2, "$defs": {"part": schema}}


def _value(random: Random, depth: int) -> Any:
    plain: tuple[Any, ...] = (None, True, False, 0, -7, 2.5, 1e3, "", "red", 'a "b"\n', "ñ", "\\")
    if depth == 0 or random.random() < 0.8:
        return random.choice(plain)
    if random.random() < 0.5:
        return [_value(random, depth - 1) for _ in range(random.randrange(3))]
    return {name: _value(random, depth - 1) for name in random.sample(_NAMES, 2)}
