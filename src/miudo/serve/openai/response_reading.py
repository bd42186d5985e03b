"""What a request to `/v1/responses` says, field by field.

For: turns out of a text or a list of items, and refusing by name what is kept or called there.
Not for: replies (`miudo.serve.openai.responses`).
Read next: `miudo.serve.fields`.
"""

from __future__ import annotations

from typing import Any

from miudo.protocol import Message
from miudo.serve.fields import FieldError, Fields
from miudo.serve.openai.tools import checked_arguments
from miudo.serve.toolbox import take_name, take_open_call
from miudo.text.tools import ToolCall, ToolMessage

__all__ = ["refuse_rest", "take_metadata", "take_turns"]

_ROLES = ("user", "assistant", "system", "developer")
# Nothing is kept between requests, nothing is called by the server, nothing is cut.
_UNSUPPORTED: dict[str, Any] = {
    "store": False, "previous_response_id": None, "conversation": None, "background": False,
    "background_options": None, "prompt": None,
    "max_tool_calls": None, "include": [], "reasoning": None,
    "truncation": "disabled", "context_management": None, "moderation": None, "top_logprobs": 0,
    "image": None, "access_programs": None,
}  # fmt: skip


def take_turns(fields: Fields) -> list[Message]:
    """Takes `instructions` and `input`. Raises FieldError, naming the item that is wrong."""
    instructions = fields.text("instructions", "")
    turns = [Message("system", instructions)] if instructions else []
    given = fields.take("input")
    if isinstance(given, str) and given:
        return [*turns, Message("user", given)]
    if not isinstance(given, list) or not given:
        raise fields.wrong("input", given, "a text, or a list of items")
    open_calls: dict[str, ToolCall] = {}
    for i, value in enumerate(given):
        _add(turns, Fields.of(f"input[{i}]", value), open_calls)
    return turns


def take_metadata(fields: Fields) -> dict[str, str]:
    """Takes `metadata`, which the reply gives back."""
    given = fields.take("metadata")
    if given is None:
        return {}
    texts = isinstance(given, dict) and all(isinstance(value, str) for value in given.values())
    if not texts or len(given) > 16:
        raise fields.wrong("metadata", given, "an object of up to 16 texts")
    return dict(given)


def refuse_rest(fields: Fields) -> None:
    """Refuses what exists elsewhere and not here, then what exists nowhere."""
    fields.refuse(_UNSUPPORTED)
    fields.choice("service_tier", ("auto", "default"), "auto")
    fields.ignore(
        "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prompt_cache_options",
    )  # fmt: skip
    fields.end()


def _add(turns: list[Message], fields: Fields, open_calls: dict[str, ToolCall]) -> None:
    """Adds an item to the turns: a message, a call, or what a call gave."""
    kind = fields.choice("type", ("message", "function_call", "function_call_output"), "message")
    if kind == "function_call":
        call = ToolCall(fields.text("call_id"), take_name(fields), checked_arguments(fields))
        open_calls[call.id] = call
        said, before = "", tuple[ToolCall, ...]()
        if turns and turns[-1].role == "assistant":  # a turn's calls are items beside its text
            last = turns.pop()
            said = last.content
            before = last.calls if isinstance(last, ToolMessage) else ()
        turns.append(ToolMessage("assistant", said, (*before, call)))
        fields.refuse(dict.fromkeys(("async", "caller", "namespace")))
    elif kind == "function_call_output":
        turns.append(_result(fields, open_calls))
    else:
        turns.append(_turn(fields))
    fields.ignore("id", "status")  # as an earlier reply gave them
    fields.end()


def _result(fields: Fields, open_calls: dict[str, ToolCall]) -> ToolMessage:
    call = take_open_call(fields, "call_id", open_calls, "the function_call")
    return ToolMessage("tool", _text(fields, "output"), (), call.id, call.name)


def _turn(fields: Fields) -> Message:
    role = fields.choice("role", _ROLES)
    content = _text(fields, "content")
    fields.ignore("phase")
    return Message("system" if role == "developer" else role, content)


def _text(fields: Fields, field: str) -> str:
    """Takes a text, or the texts of a list of parts."""
    value = fields.take(field)
    if isinstance(value, list):
        places = (fields.name(f"{field}[{i}]") for i in range(len(value)))
        value = "".join(_part(path, part) for path, part in zip(places, value, strict=True))
    if not isinstance(value, str):
        raise fields.wrong(field, value, "text, or a list of parts")
    return value


def _part(path: str, value: Any) -> str:
    fields = Fields.of(path, value)
    kind = fields.take("type")
    if kind not in ("input_text", "output_text"):
        raise FieldError(f"{path}.type", f"is {kind!r:.60}", remedy="Give parts of type input_text")
    text = fields.text("text")
    fields.refuse({"annotations": []})
    fields.ignore("logprobs")
    fields.end()
    return text
