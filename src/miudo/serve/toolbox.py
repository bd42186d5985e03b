"""Functions that a request brings: which there are, and whether and which of them is called.

For: from functions, in whatever names a protocol has, to a language that answers keep to.
Not for: a protocol's fields (`miudo.serve.openai.tools`), or telling the model
(`miudo.text.tools`).
Read next: `miudo.engine.calling`.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from miudo.engine.calling import calling
from miudo.engine.grammars import Language
from miudo.errors import RequestError
from miudo.serve.fields import FieldError, Fields
from miudo.serve.guiding import checked
from miudo.text.tools import CallForm, Tool, ToolCall, call_form

__all__ = [
    "MOST_TOOLS",
    "Toolbox",
    "call_id",
    "take_choice",
    "take_name",
    "take_open_call",
    "take_schema",
    "take_tool_list",
]

MOST_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The functions of a request, and whether and which of them is called.

    `choice` is none, auto, required, or a function's name behind a colon. `schema` is how the
    protocol calls the schema below a tool, for errors.
    """

    tools: tuple[Tool, ...] = ()
    choice: str = "none"
    several: bool = True
    schema: str = "function.parameters"

    @property
    def told(self) -> tuple[Tool, ...]:
        """Those the model is told of."""
        return () if self.choice == "none" else self.tools

    def form(self, source: str) -> CallForm | None:
        """Returns the form of calls of a template; None where there are none to come."""
        try:
            return call_form(source) if self.told else None
        except RequestError as error:
            raise FieldError(error.where, error.what, remedy=error.remedy) from error

    def language(self, form: CallForm, special_ids: Mapping[str, int]) -> Language:
        """Returns what answers may be. Raises FieldError for schemas that cannot be enforced."""
        named = self.choice.removeprefix(":")
        places = [
            (tool, f"tools[{i}].{self.schema}")
            for i, tool in enumerate(self.tools)
            if not self.choice.startswith(":") or tool.name == named
        ]
        must = self.choice != "auto"
        several = self.several and not self.choice.startswith(":")
        return checked(lambda: calling(form, places, special_ids, must=must, several=several))


def take_tool_list(
    fields: Fields, read: Callable[[Fields], Tool], *, name: str = "name"
) -> tuple[Tool, ...]:
    """Takes `tools`, each by `read`; `name` is where a tool's name stands. Raises FieldError."""
    given = fields.take("tools")
    values = [] if given is None else given
    if not isinstance(values, list):
        raise fields.wrong("tools", given, "a list of functions")
    if len(values) > MOST_TOOLS:
        raise FieldError("tools", f"has {len(values)} functions, the limit is {MOST_TOOLS}")
    tools: list[Tool] = []
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            raise FieldError(f"tools[{i}]", "is no object", remedy="Give a function")
        one = Fields(value, f"tools[{i}]")
        tools.append(read(one))
        one.end()
        if tools[-1].name in [tool.name for tool in tools[:-1]]:
            raise FieldError(one.name(name), f"is {tools[-1].name!r} once more")
    return tuple(tools)


def take_choice(kind: str, tools: tuple[Tool, ...], *, where: str = "tool_choice") -> str:
    """Returns the `kind` none, auto or required; raises FieldError where there is none to call."""
    if kind == "required" and not tools:
        raise FieldError(where, "asks for a call without tools", remedy="Give some")
    return kind if tools else "none"


def take_name(fields: Fields, field: str = "name") -> str:
    """Takes a function's name. Raises FieldError for one that no function can have."""
    name = fields.text(field)
    if not _NAME.fullmatch(name):
        raise fields.wrong(field, name, "1 to 64 of A-Z, a-z, 0-9, _ and -")
    return name


def take_open_call(
    fields: Fields, field: str, waiting: dict[str, ToolCall], brought: str
) -> ToolCall:
    """Takes the id of a call whose result this is, out of those `waiting`.

    `brought` says what brings a call in this protocol. Raises FieldError for an unknown id.
    """
    number = fields.text(field)
    call = waiting.pop(number, None)
    if call is None:
        raise FieldError(
            fields.name(field),
            f"is {number!r:.60}, and no call before waits for that",
            remedy=f"Send {brought} before it",
        )
    return call


def take_schema(fields: Fields, field: str) -> dict[str, Any] | None:
    """Takes the schema of a function's arguments, an object's; None where it is absent."""
    schema = fields.take(field)
    if schema is None:
        return None
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise FieldError(fields.name(field), "is no schema of type object", remedy="Set its type")
    return schema


def call_id() -> str:
    """Returns a new name for a call: nine letters and digits, which all templates take."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))
