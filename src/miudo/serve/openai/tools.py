"""Functions in a chat: `tools`, `tool_choice`, and the messages that calls leave behind.

For: these fields in OpenAI's names, some of which Ollama has too.
Not for: what is made of them (`miudo.serve.toolbox`).
Read next: `miudo.serve.toolbox`.
"""

from __future__ import annotations

from typing import Any

from miudo.errors import ModelFileError
from miudo.serve.fields import FieldError, Fields
from miudo.serve.toolbox import (
    MOST_TOOLS,
    Toolbox,
    take_choice,
    take_name,
    take_schema,
    take_tool_list,
)
from miudo.strict_json import parse_object
from miudo.text.tools import Tool, ToolCall

__all__ = ["checked_arguments", "function_of", "take_calls", "take_functions", "take_tools"]

_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def take_tools(fields: Fields) -> Toolbox:
    """Takes `tools`, `tool_choice` and `parallel_tool_calls`. Raises FieldError."""
    tools = take_functions(fields)
    return Toolbox(tools, _choice(fields, tools), fields.flag("parallel_tool_calls", True))


def take_functions(fields: Fields) -> tuple[Tool, ...]:
    """Takes `tools`, each an object with type and function. Raises FieldError."""
    return take_tool_list(fields, _tool, name="function.name")


def take_calls(fields: Fields) -> tuple[ToolCall, ...]:
    """Takes the calls of an assistant's message. Raises FieldError."""
    given = fields.take("tool_calls")
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) > MOST_TOOLS:
        raise fields.wrong("tool_calls", given, f"a list of up to {MOST_TOOLS} calls")
    return tuple(_call(fields.name(f"tool_calls[{i}]"), call) for i, call in enumerate(given))


def function_of(function: Fields) -> Tool:
    """Takes name, description and parameters, by which OpenAI's protocols describe a function."""
    name = take_name(function)
    description = function.text("description", "")
    function.flag("strict")  # with it or without, the schema is enforced
    parameters = take_schema(function, "parameters")
    return Tool(name, description, _NO_ARGUMENTS if parameters is None else parameters)


def checked_arguments(fields: Fields) -> str:
    """Takes a call's arguments, the JSON text of an object. Raises FieldError for another."""
    arguments = fields.text("arguments")
    try:
        parse_object(arguments.encode("utf-8", "surrogatepass"), "arguments", max_values=1 << 16)
    except ModelFileError as error:
        raise FieldError(fields.name("arguments"), f"is {error.what}") from error
    return arguments


def _tool(fields: Fields) -> Tool:
    fields.choice("type", ("function",))
    function = fields.table("function")
    if function is None:
        raise fields.wrong("function", None, "an object with name and parameters")
    tool = function_of(function)
    function.end()
    return tool


def _choice(fields: Fields, tools: tuple[Tool, ...]) -> str:
    given = fields.take("tool_choice")
    if isinstance(given, dict):
        one = Fields(given, fields.name("tool_choice"))
        one.choice("type", ("function",))
        function = one.table("function") or Fields({}, one.name("function"))
        one.end()
        name = function.choice("name", [tool.name for tool in tools])
        function.end()
        return f":{name}"
    if given not in (None, "none", "auto", "required"):
        raise fields.wrong("tool_choice", given, "none, auto, required, or a function")
    return take_choice(given or "auto", tools)


def _call(path: str, value: Any) -> ToolCall:
    if not isinstance(value, dict):
        raise FieldError(path, "is no object")
    fields = Fields(value, path)
    fields.choice("type", ("function",), "function")
    number = fields.text("id")
    function = fields.table("function")
    fields.ignore("index")
    fields.end()
    if function is None:
        raise fields.wrong("function", None, "an object with name and arguments")
    call = ToolCall(number, take_name(function), checked_arguments(function))
    function.end()
    return call
