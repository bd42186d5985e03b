"""Functions in a chat: `tools`, `tool_choice`, and the messages that calls leave behind.

For: from these fields to a language that answers keep to, and from an answer's text to calls.
Not for: telling the model (`miudo.text.tools`), or other forms (`miudo.serve.openai.formats`).
Read next: `miudo.engine.calling`.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from miudo.engine.calling import calling
from miudo.engine.grammars import Language
from miudo.errors import ModelFileError, RequestError
from miudo.serve.fields import FieldError, Fields
from miudo.serve.openai.formats import checked
from miudo.strict_json import parse_object
from miudo.text.tools import CallForm, Tool, ToolCall, call_form

__all__ = ["Toolbox", "call_id", "take_calls", "take_tools"]

_MOST_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The functions of a request, and whether and which of them is called.

    `choice` is none, auto, required, or a function's name behind a colon.
    """

    tools: tuple[Tool, ...] = ()
    choice: str = "none"
    several: bool = True

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
            (tool, f"tools[{i}].function.parameters")
            for i, tool in enumerate(self.tools)
            if not self.choice.startswith(":") or tool.name == named
        ]
        must = self.choice != "auto"
        several = self.several and not self.choice.startswith(":")
        return checked(lambda: calling(form, places, special_ids, must=must, several=several))


def take_tools(fields: Fields) -> Toolbox:
    """Takes `tools`, `tool_choice` and `parallel_tool_calls`. Raises FieldError."""
    given = fields.take("tools")
    values = [] if given is None else given
    if not isinstance(values, list):
        raise fields.wrong("tools", given, "a list of functions")
    if len(values) > _MOST_TOOLS:
        raise FieldError("tools", f"has {len(values)} functions, the limit is {_MOST_TOOLS}")
    tools = tuple(_tool(i, value) for i, value in enumerate(values))
    names = [tool.name for tool in tools]
    twice = next((i for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise FieldError(f"tools[{twice}].function.name", f"is {names[twice]!r} once more")
    several = fields.flag("parallel_tool_calls", True)
    return Toolbox(tools, _choice(fields, names), several)


def take_calls(fields: Fields) -> tuple[ToolCall, ...]:
    """Takes the calls of an assistant's message. Raises FieldError."""
    given = fields.take("tool_calls")
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) > _MOST_TOOLS:
        raise fields.wrong("tool_calls", given, f"a list of up to {_MOST_TOOLS} calls")
    return tuple(_call(fields.name(f"tool_calls[{i}]"), call) for i, call in enumerate(given))


def call_id() -> str:
    """Returns a new name for a call: nine letters and digits, which all templates take."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


def _tool(index: int, value: Any) -> Tool:
    path = f"tools[{index}]"
    if not isinstance(value, dict):
        raise FieldError(path, "is no object", remedy="Give type and function")
    fields = Fields(value, path)
    fields.choice("type", ("function",))
    function = fields.table("function")
    fields.end()
    if function is None:
        raise fields.wrong("function", None, "an object with name and parameters")
    name = function.text("name")
    if not _NAME.fullmatch(name):
        raise function.wrong("name", name, "1 to 64 of A-Z, a-z, 0-9, _ and -")
    description = function.text("description", "")
    parameters = function.take("parameters")
    function.flag("strict")  # with it or without, the schema is enforced
    function.end()
    if parameters is None:
        parameters = _NO_ARGUMENTS
    if not isinstance(parameters, dict) or parameters.get("type") != "object":
        raise FieldError(
            function.name("parameters"), "is no schema of type object", remedy="Set its type"
        )
    return Tool(name, description, parameters)


def _choice(fields: Fields, names: list[str]) -> str:
    given = fields.take("tool_choice")
    if given is None:
        return "auto" if names else "none"
    if isinstance(given, dict):
        one = Fields(given, fields.name("tool_choice"))
        one.choice("type", ("function",))
        function = one.table("function") or Fields({}, one.name("function"))
        one.end()
        name = function.choice("name", names)
        function.end()
        return f":{name}"
    if given not in ("none", "auto", "required"):
        raise fields.wrong("tool_choice", given, "none, auto, required, or a function")
    if given == "required" and not names:
        raise FieldError("tool_choice", "is 'required' without tools", remedy="Give some")
    return given if names else "none"


def _call(path: str, value: Any) -> ToolCall:
    if not isinstance(value, dict):
        raise FieldError(path, "is no object")
    fields = Fields(value, path)
    fields.choice("type", ("function",), "function")
    name = fields.text("id")
    function = fields.table("function")
    fields.ignore("index")
    fields.end()
    if function is None:
        raise fields.wrong("function", None, "an object with name and arguments")
    called, arguments = function.text("name"), function.text("arguments")
    function.end()
    if not _NAME.fullmatch(called):
        raise function.wrong("name", called, "1 to 64 of A-Z, a-z, 0-9, _ and -")
    try:
        parse_object(arguments.encode("utf-8", "surrogatepass"), "arguments", max_values=1 << 16)
    except ModelFileError as error:
        raise FieldError(function.name("arguments"), f"is {error.what}") from error
    return ToolCall(name, called, arguments)
