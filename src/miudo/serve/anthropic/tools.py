"""Functions in Anthropic's names: `tools` and `tool_choice`.

For: these fields of a request.
Not for: what is made of them (`miudo.serve.toolbox`), or blocks (`miudo.serve.anthropic.reading`).
Read next: `miudo.serve.toolbox`.
"""

from __future__ import annotations

from miudo.serve.fields import Fields
from miudo.serve.toolbox import Toolbox, take_choice, take_name, take_schema, take_tool_list
from miudo.text.tools import Tool

__all__ = ["take_tools"]

_KINDS = {"auto": "auto", "any": "required", "tool": "tool", "none": "none"}
_UNSUPPORTED = {"defer_loading": False, "allowed_callers": ["direct"], "input_examples": []}


def take_tools(fields: Fields) -> Toolbox:
    """Takes `tools` and `tool_choice`. Raises FieldError."""
    tools = take_tool_list(fields, _tool)
    choice = fields.table("tool_choice")
    if choice is None:
        return Toolbox(tools, take_choice("auto", tools), schema="input_schema")
    kind = choice.choice("type", tuple(_KINDS))
    several = not choice.flag("disable_parallel_tool_use")
    if kind == "tool":
        called = ":" + choice.choice("name", [tool.name for tool in tools])
    else:
        called = take_choice(_KINDS[kind], tools, where=choice.name("type"))
    choice.end()
    return Toolbox(tools, called, several, schema="input_schema")


def _tool(fields: Fields) -> Tool:
    fields.choice("type", ("custom",), "custom")
    tool = Tool(take_name(fields), fields.text("description", ""), _schema(fields))
    fields.flag("strict")  # with it or without, the schema is enforced
    fields.flag("eager_input_streaming")  # arguments are streamed as they come
    fields.refuse(_UNSUPPORTED)
    fields.ignore("cache_control")  # beginnings are kept anyway
    return tool


def _schema(fields: Fields) -> dict[str, object]:
    schema = take_schema(fields, "input_schema")
    if schema is None:
        raise fields.wrong("input_schema", None, "a JSON Schema of type object")
    return schema
