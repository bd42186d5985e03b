"""What form an answer is to have: `response_format`, and `structured_outputs`.

For: JSON, JSON of a schema; and of the second, in vLLM's names, expressions, choices, grammars.
Not for: calls of functions (`miudo.serve.openai.tools`).
Read next: `miudo.engine.grammars`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from miudo.engine.grammars import Language, any_of, expression, json_of, lark
from miudo.errors import RequestError
from miudo.serve.fields import FieldError, Fields
from miudo.serve.guiding import checked

__all__ = ["described_form", "take_format", "take_structured"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MOST_CHOICES = 1024


def take_format(fields: Fields) -> Language | None:
    """Takes the fields of a chat; returns the language, None where any text will do.

    Raises FieldError naming the keyword for what cannot be enforced.
    """
    structured = take_structured(fields)
    given = fields.table("response_format")
    if given is None:
        return structured
    kind = given.choice("type", ("text", "json_object", "json_schema"))
    language = None
    if kind == "json_object":
        language = json_of({"type": "object"}, given.name("type"))
    if kind == "json_schema":
        language = _schema(given)
    given.end()
    if language is not None and structured is not None:
        raise FieldError("structured_outputs", "is given beside response_format")
    return language or structured


def take_structured(fields: Fields) -> Language | None:
    """Takes `structured_outputs`: exactly one of json, regex, choice and grammar."""
    given = fields.table("structured_outputs")
    if given is None:
        return None
    makers: dict[str, Callable[[Any, str], Language]] = {
        "json": _of_json, "regex": _of_text(expression), "choice": _of_choice,
        "grammar": _of_text(lark),
    }  # fmt: skip
    values = {name: value for name in makers if (value := given.take(name)) is not None}
    given.end()
    if len(values) != 1:
        raise FieldError(
            "structured_outputs",
            f"has {len(values)} forms",
            remedy=f"Give one of {', '.join(makers)}",
        )
    ((name, value),) = values.items()
    where = given.name(name)
    return checked(lambda: makers[name](value, where))


def described_form(described: Fields) -> Language:
    """Takes name, schema, strict and description. Raises FieldError for what cannot be enforced."""
    name = described.text("name")
    if not _NAME.fullmatch(name):
        raise described.wrong("name", name, "1 to 64 of A-Z, a-z, 0-9, _ and -")
    schema = described.take("schema")
    described.flag("strict")  # with it or without, the schema is enforced
    described.ignore("description")
    if schema is None:
        raise described.wrong("schema", None, "a JSON Schema")
    where = described.name("schema")
    return checked(lambda: json_of(schema, where))


def _schema(given: Fields) -> Language:
    described = given.table("json_schema")
    if described is None:
        raise given.wrong("json_schema", None, "an object with name and schema")
    language = described_form(described)
    described.end()
    return language


def _of_json(value: Any, where: str) -> Language:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RequestError("is no JSON", where=where) from error
    return json_of(value, where)


def _of_text(make: Callable[[str, str], Language]) -> Callable[[Any, str], Language]:
    def made(value: Any, where: str) -> Language:
        if not isinstance(value, str):
            raise RequestError(f"is {value!r:.60}", where=where, remedy="Give a text")
        return make(value, where)

    return made


def _of_choice(value: Any, where: str) -> Language:
    fits = isinstance(value, list) and 0 < len(value) <= _MOST_CHOICES
    if not fits or not all(isinstance(text, str) and text for text in value):
        raise RequestError(
            "is no list of texts", where=where, remedy=f"Give 1 to {_MOST_CHOICES}, none empty"
        )
    return any_of(value, where)
