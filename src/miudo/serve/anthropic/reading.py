"""What a request to `/v1/messages` says, field by field.

For: turns, calls and the system's text out of strings and content blocks; how long and how to draw.
Not for: replies (`miudo.serve.anthropic.messages`).
Read next: `miudo.serve.fields`.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from miudo.protocol import Message, SamplingSettings
from miudo.serve.asking import Drawing
from miudo.serve.fields import FieldError, Fields
from miudo.serve.toolbox import take_name, take_open_call
from miudo.text.tools import ToolCall, ToolMessage

__all__ = ["take_drawing", "take_turns"]

_MAX_TOKENS = 1 << 31
_MAX_STOPS = 16
_UNSUPPORTED = {
    "container": None, "context_management": None,
    "mcp_servers": None, "output_config": None, "output_format": None, "cache_control": None,
    "inference_geo": None, "speed": "standard", "thinking": {"type": "disabled"},
    "diagnostics": None, "user_profile_id": None,
}  # fmt: skip


def take_turns(fields: Fields) -> list[Message]:
    """Takes `system` and `messages`; refuses fields that exist elsewhere and not here.

    Raises FieldError for what is no text, no call and no call's result, naming the block.
    """
    given = fields.take("messages")
    if not isinstance(given, list) or not given:
        raise FieldError("messages", "is no list of messages", remedy="Give at least one")
    turns: list[Message] = []
    system = fields.take("system")
    if system is not None:
        turns.append(Message("system", _content("system", system)))
    open_calls: dict[str, ToolCall] = {}
    for i, value in enumerate(given):
        turns += _turn(f"messages[{i}]", value, open_calls)
    if turns[-1].role == "assistant":  # this protocol would have the answer begin with it
        raise FieldError(
            f"messages[{len(given) - 1}]",
            "is the assistant's, and to go on with it is not supported",
            remedy="End with a user's message",
        )
    fields.choice("service_tier", ("auto", "standard_only"), "auto")  # there is one
    fields.refuse(_UNSUPPORTED)
    return turns


def take_drawing(fields: Fields) -> Drawing:
    """Takes length, chance, stop strings and whether to stream; `max_tokens` must be given."""
    max_tokens = fields.whole("max_tokens", 1, _MAX_TOKENS)
    temperature = fields.number("temperature", 0.0, 1.0, 1.0)
    sampling = SamplingSettings(
        temperature=0.0 if temperature < 1e-6 else temperature,
        top_k=fields.whole("top_k", 0, 1 << 30, 0),
        top_p=max(fields.number("top_p", 0.0, 1.0, 1.0), 1e-6),
        seed=secrets.randbits(63),
    )
    fields.ignore("metadata")
    return Drawing(
        max_tokens=max_tokens,
        n=1,
        sampling=sampling,
        penalties=None,
        stop=fields.texts("stop_sequences", _MAX_STOPS),
        stream=fields.flag("stream"),
        with_usage=True,
    )


def _turn(path: str, value: Any, open_calls: dict[str, ToolCall]) -> list[Message]:
    """Returns a message's turns: each call's result is one, and what is said beside them."""
    fields = Fields.of(path, value)
    role = fields.choice("role", ("user", "assistant"))
    content = fields.take("content")
    fields.end()
    if not isinstance(content, list):
        return [Message(role, _content(f"{path}.content", content))]
    turns: list[Message] = []
    calls: list[ToolCall] = []
    texts: list[str] = []
    for i, block in enumerate(content):
        one = Fields.of(f"{path}.content[{i}]", block)
        kind = _kind(one, _BLOCKS[role])
        if kind == "tool_use":
            calls.append(_call(one))
        elif kind == "tool_result":
            turns.append(_result(one, open_calls))
        else:
            texts.append(_text(one))
        one.ignore("cache_control")  # beginnings are kept anyway
        one.end()
    open_calls |= {call.id: call for call in calls}
    said = "".join(texts)
    if calls:
        return [ToolMessage(role, said, tuple(calls))]
    return [*turns, Message(role, said)] if texts or not turns else turns


def _content(path: str, value: Any) -> str:
    """Returns the text of a string, or of a list of blocks of text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise FieldError(path, f"is {value!r:.60}", remedy="Give a text, or a list of blocks")
    texts = []
    for i, block in enumerate(value):
        one = Fields.of(f"{path}[{i}]", block)
        _kind(one, ("text",))
        texts.append(_text(one))
        one.ignore("cache_control")
        one.end()
    return "".join(texts)


def _kind(fields: Fields, known: tuple[str, ...]) -> str:
    kind = fields.take("type", type="string", enum=list(known))
    if not isinstance(kind, str) or kind not in known:
        remedy = f"Give blocks of type {', '.join(known)}"
        raise FieldError(fields.name("type"), f"is {kind!r:.60}", remedy=remedy)
    return kind


def _text(fields: Fields) -> str:
    fields.refuse({"citations": []})
    return fields.text("text")


def _call(fields: Fields) -> ToolCall:
    number, name = fields.text("id"), take_name(fields)
    given = fields.take("input", type="object")
    if not isinstance(given, dict):
        raise fields.wrong("input", given, "an object")
    fields.refuse({"caller": {"type": "direct"}, "toolset_name": None})
    return ToolCall(number, name, json.dumps(given, ensure_ascii=False))


def _result(fields: Fields, open_calls: dict[str, ToolCall]) -> ToolMessage:
    """Returns what a call gave. No template knows failures, so one is said in the text."""
    call = take_open_call(
        fields, "tool_use_id", open_calls, "the assistant's message with its tool_use"
    )
    content = fields.take("content")
    text = "" if content is None else _content(fields.name("content"), content)
    failed = fields.flag("is_error")
    fields.refuse({"toolset_name": None})
    return ToolMessage("tool", f"Error: {text}" if failed else text, (), call.id, call.name)


_BLOCKS = {"user": ("text", "tool_result"), "assistant": ("text", "tool_use")}
