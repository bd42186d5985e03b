"""A request's JSON object, field by field: every value checked, unknown ones refused by name.

For: all protocols, so that no field is ever ignored in silence.
Not for: what the fields mean (`miudo.serve.openai`).
Read next: `miudo.serve.openai.sampling`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from typing import Any, Self

from miudo.errors import ModelFileError, RequestError
from miudo.strict_json import parse_object

__all__ = ["WATCHED", "FieldError", "Fields", "parse_body"]

WATCHED: ContextVar[Callable[[str, Mapping[str, Any]], None] | None] = ContextVar(
    "watched", default=None
)
"""Is told each field's full name and JSON schema as it is read: so the reader describes itself."""

_MAX_VALUES = 1 << 20
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


class FieldError(RequestError):
    """A field that is missing, wrong, unknown or not supported; `param` is its name."""

    def __init__(self, param: str | None, what: str, *, remedy: str | None = None) -> None:
        super().__init__(what, where=param, remedy=remedy)
        self.param = param


def parse_body(body: bytes) -> dict[str, Any]:
    """Returns the JSON object that a request carries. Raises FieldError for anything else.

    Halves of surrogate pairs are refused too: no reply could give such a text back.
    """
    try:
        value = parse_object(body, "body", max_values=_MAX_VALUES)
    except ModelFileError as error:
        raise FieldError(None, f"the request's body is {error.what}") from error
    if _HALF.search(body):  # as one half of a pair, or alone
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise FieldError(None, "the request's body has a text that is no Unicode") from error
    return value


class Fields:
    """Takes fields out of an object; `end` refuses what nobody took.

    A JSON null counts as absent. `path` names the object in errors, as "messages[2]".
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values = dict(values)
        self._path = path

    @classmethod
    def of(cls, path: str, value: Any) -> Self:
        """Returns the fields of what stands at `path`. Raises FieldError if it is no object."""
        if not isinstance(value, dict):
            raise FieldError(path, "is no object")
        return cls(value, path)

    def name(self, field: str) -> str:
        """Returns the field's full name."""
        return f"{self._path}.{field}" if self._path else field

    def has(self, field: str) -> bool:
        """Returns whether the field is there with a value."""
        return self._values.get(field) is not None

    def take(self, field: str, **schema: Any) -> Any:
        """Returns the raw value, None where it is absent; `schema` is what it should be."""
        if (watcher := WATCHED.get()) is not None:
            watcher(self.name(field), schema)
        return self._values.pop(field, None)

    def text(self, field: str, default: str | None = None) -> str:
        """Returns a text. Raises FieldError where it is none, or absent without a default."""
        value = self._given(field, default, type="string")
        if not isinstance(value, str):
            raise self.wrong(field, value, "text")
        return value

    def whole(self, field: str, low: int, high: int, default: int | None = None) -> int:
        """Returns a whole number from `low` to `high`."""
        value = self._given(field, default, type="integer", minimum=low, maximum=high)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(field, value, f"a whole number from {low} to {high}")
        return value

    def number(self, field: str, low: float, high: float, default: float | None = None) -> float:
        """Returns a number from `low` to `high`."""
        value = self._given(field, default, type="number", minimum=low, maximum=high)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.wrong(field, value, f"a number from {low} to {high}")
        return float(value)

    def flag(self, field: str, default: bool = False) -> bool:
        """Returns true or false."""
        value = self._given(field, default, type="boolean")
        if type(value) is not bool:
            raise self.wrong(field, value, "true or false")
        return value

    def choice(self, field: str, allowed: Collection[str], default: str | None = None) -> str:
        """Returns one of the `allowed` texts."""
        value = self._given(field, default, type="string", enum=list(allowed))
        if not isinstance(value, str) or value not in allowed:
            raise self.wrong(field, value, "one of " + ", ".join(allowed))
        return value

    def texts(self, field: str, most: int) -> tuple[str, ...]:
        """Returns a text or a list of up to `most` texts as a tuple; none may be empty."""
        one = {"type": "string", "minLength": 1}
        value = self.take(field, anyOf=[one, {"type": "array", "items": one, "maxItems": most}])
        if value is None:
            return ()
        given = [value] if isinstance(value, str) else value
        fits = isinstance(given, list) and len(given) <= most
        if not fits or not all(isinstance(t, str) and t for t in given):
            raise self.wrong(field, value, f"a text, or a list of up to {most}, none empty")
        return tuple(given)

    def table(self, field: str) -> Fields | None:
        """Returns an object's fields, None where it is absent."""
        value = self.take(field, type="object")
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(field, value, "an object")
        return Fields(value, self.name(field))

    def refuse(self, fields: Mapping[str, Any]) -> None:
        """Refuses fields that exist elsewhere and not here, unless they have the value given."""
        for field, harmless in fields.items():
            value = self.take(field, enum=[harmless])
            if value is not None and value != harmless:
                raise FieldError(self.name(field), "is not supported", remedy="Leave it out")

    def ignore(self, *fields: str) -> None:
        """Drops fields that change no answer, such as what a client notes for itself."""
        for field in fields:
            self.take(field)

    def rest(self) -> dict[str, Any]:
        """Returns what nobody took, to be read elsewhere."""
        return dict(self._values)

    def end(self) -> None:
        """Raises FieldError for the first field that is left."""
        for field in self._values:
            raise FieldError(
                self.name(field)[:200], "is no field of this request", remedy="Leave it out"
            )

    def wrong(self, field: str, value: Any, allowed: str) -> FieldError:
        """Returns the error of a value that cannot be."""
        if value is None:
            return FieldError(self.name(field), "is missing", remedy=f"Give {allowed}")
        return FieldError(self.name(field), f"is {value!r:.100}", remedy=f"Give {allowed}")

    def _given(self, field: str, default: Any, **schema: Any) -> Any:
        value = self.take(field, **schema)
        return default if value is None else value
