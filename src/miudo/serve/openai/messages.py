"""The messages of a chat request, and what they may hold.

For: `messages`, part by part.
Not for: putting them into a template (`miudo.text.chat`).
Read next: `miudo.serve.openai.chat`.
"""

from __future__ import annotations

from typing import Any

from miudo.protocol import Message
from miudo.serve.fields import FieldError, Fields
from miudo.serve.openai.tools import take_calls
from miudo.text.tools import ToolMessage

__all__ = ["take_messages"]


def take_messages(fields: Fields) -> list[Message]:
    """Takes the messages. Raises FieldError naming the part that is wrong."""
    given = fields.take("messages")
    if not isinstance(given, list) or not given:
        raise FieldError("messages", "is no list of messages", remedy="Give at least one")
    return [_message(Fields(_object(i, value), f"messages[{i}]")) for i, value in enumerate(given)]


def _object(index: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FieldError(f"messages[{index}]", "is no object", remedy="Give role and content")
    return value


def _message(fields: Fields) -> Message:
    role = fields.choice("role", ("system", "developer", "user", "assistant", "tool"))
    content = fields.take("content")
    calls = take_calls(fields) if role == "assistant" else ()
    if content is None and calls:
        content = ""
    if isinstance(content, list):
        content = "".join(
            _part(fields.name(f"content[{i}]"), part) for i, part in enumerate(content)
        )
    if not isinstance(content, str):
        raise fields.wrong("content", content, "text")
    call = fields.text("tool_call_id") if role == "tool" else None
    name = fields.text("name", "") or None
    fields.refuse(dict.fromkeys(("tool_calls", "tool_call_id", "function_call", "audio")))
    fields.refuse({"refusal": "", "annotations": []})
    fields.end()
    if role == "tool" or calls:
        return ToolMessage(role, content, calls, call, name if role == "tool" else None)
    return Message("system" if role == "developer" else role, content)


def _part(path: str, part: Any) -> str:
    if not isinstance(part, dict):
        raise FieldError(path, "is no object")
    fields = Fields(part, path)
    kind = fields.take("type")
    if kind != "text":
        raise FieldError(f"{path}.type", f"is {kind!r:.60}", remedy="Give parts of type text")
    text = fields.text("text")
    fields.end()
    return text
