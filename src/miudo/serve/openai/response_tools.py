"""Functions and forms of a response: `tools`, `tool_choice`, `text`, in that route's shapes.

For: these fields, and how a reply gives them back.
Not for: those of a chat (`miudo.serve.openai.tools`, `miudo.serve.openai.formats`).
Read next: `miudo.serve.toolbox`.
"""

from __future__ import annotations

from typing import Any

from miudo.engine.grammars import Language, json_of
from miudo.serve.fields import Fields
from miudo.serve.openai.formats import described_form
from miudo.serve.openai.tools import function_of
from miudo.serve.toolbox import Toolbox, take_choice, take_tool_list
from miudo.text.tools import Tool

__all__ = ["take_text_form", "take_toolbox"]


def take_toolbox(fields: Fields) -> tuple[Toolbox, dict[str, Any]]:
    """Takes `tools`, `tool_choice` and `parallel_tool_calls`; returns also what a reply echoes."""
    tools = take_tool_list(fields, _tool)
    several = fields.flag("parallel_tool_calls", True)
    given = fields.take("tool_choice")
    if isinstance(given, dict):
        one = Fields(given, "tool_choice")
        one.choice("type", ("function",))
        choice = ":" + one.choice("name", [tool.name for tool in tools])
        one.end()
    elif given in (None, "none", "auto", "required"):
        choice = take_choice(given or "auto", tools)
    else:
        raise fields.wrong("tool_choice", given, "none, auto, required, or a function")
    shown = [{"type": "function", "strict": True, **t.as_given()["function"]} for t in tools]
    echoed = {"tools": shown, "tool_choice": given or "auto", "parallel_tool_calls": several}
    return Toolbox(tools, choice, several, schema="parameters"), echoed


def take_text_form(fields: Fields) -> tuple[Language | None, dict[str, Any]]:
    """Takes `text`; returns the language, None where any text will do, and what a reply echoes."""
    text = fields.table("text") or Fields({}, "text")
    given = text.take("format")
    shown = {"text": {"format": given or {"type": "text"}}}
    text.refuse({"verbosity": "medium"})
    text.end()
    if given is None:
        return None, shown
    if not isinstance(given, dict):
        raise text.wrong("format", given, "an object")
    form = Fields(given, "text.format")
    kind = form.choice("type", ("text", "json_object", "json_schema"))
    language = None
    if kind == "json_object":
        language = json_of({"type": "object"}, "text.format.type")
    if kind == "json_schema":
        language = described_form(form)
    form.end()
    return language, shown


def _tool(fields: Fields) -> Tool:
    fields.choice("type", ("function",))
    return function_of(fields)
