"""The messages of `/api/chat`, with the calls that a model made and what they gave.

For: `messages`, one by one.
Not for: putting them into a template (`miudo.text.chat`).
Read next: `miudo.serve.ollama.generate`.
"""

from __future__ import annotations

import json
from typing import Any

from miudo.protocol import Message
from miudo.serve.fields import FieldError, Fields
from miudo.serve.toolbox import MOST_TOOLS, take_name
from miudo.text.tools import ToolCall, ToolMessage

__all__ = ["take_messages"]

_UNSUPPORTED: dict[str, Any] = {"images": [], "thinking": ""}


def take_messages(fields: Fields) -> list[Message]:
    """Takes the messages, of which there may be none. Raises FieldError naming what is wrong.

    This protocol's clients name no calls. So that templates that want names have some, calls are
    numbered, and what a call gave answers the first open one of its function.
    """
    given = fields.take("messages")
    if not isinstance(given, list | None):
        raise fields.wrong("messages", given, "a list of messages")
    turns: list[Message] = []
    open_calls: list[ToolCall] = []
    number = 0
    for i, value in enumerate(given or []):
        if not isinstance(value, dict):
            raise FieldError(f"messages[{i}]", "is no object", remedy="Give role and content")
        one = Fields(value, f"messages[{i}]")
        role = one.choice("role", ("system", "user", "assistant", "tool"))
        calls = _calls(one, number) if role == "assistant" else ()
        number += len(calls)
        open_calls += calls
        turns.append(_turn(one, role, calls, open_calls))
        one.refuse(_UNSUPPORTED | dict.fromkeys(("tool_name", "tool_call_id")) | {"tool_calls": []})
        one.end()
    return turns


def _turn(
    fields: Fields, role: str, calls: tuple[ToolCall, ...], open_calls: list[ToolCall]
) -> Message:
    content = fields.text("content", "" if calls else None)
    if role != "tool":
        return ToolMessage(role, content, calls) if calls else Message(role, content)
    name, number = fields.text("tool_name", ""), fields.text("tool_call_id", "")
    meant = [call for call in open_calls if number in ("", call.id) and name in ("", call.name)]
    if not meant:
        raise FieldError(
            fields.name("tool_call_id" if number else "tool_name"),
            f"is {number or name!r:.60}, and no call before waits for that",
            remedy="Send the assistant's message with its tool_calls before it",
        )
    open_calls.remove(meant[0])
    return ToolMessage(role, content, (), meant[0].id, meant[0].name)


def _calls(fields: Fields, number: int) -> tuple[ToolCall, ...]:
    given = fields.take("tool_calls")
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) > MOST_TOOLS:
        raise fields.wrong("tool_calls", given, f"a list of up to {MOST_TOOLS} calls")
    places = (fields.name(f"tool_calls[{i}]") for i in range(len(given)))
    return tuple(
        _call(path, value, f"{number + i:09}")
        for i, (path, value) in enumerate(zip(places, given, strict=True))
    )


def _call(path: str, value: Any, number: str) -> ToolCall:
    if not isinstance(value, dict):
        raise FieldError(path, "is no object", remedy="Give function")
    fields = Fields(value, path)
    fields.choice("type", ("function",), "function")
    function = fields.table("function")
    if function is None:
        raise fields.wrong("function", None, "an object with name and arguments")
    name, arguments = take_name(function), function.take("arguments", type="object")
    if not isinstance(arguments, dict):
        raise function.wrong("arguments", arguments, "an object")
    function.ignore("index")
    function.end()
    call = ToolCall(fields.text("id", number), name, json.dumps(arguments, ensure_ascii=False))
    fields.end()
    return call
