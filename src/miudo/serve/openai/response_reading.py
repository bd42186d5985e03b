"""What a request to `/v1/responses` says, field by field.

For: turns out of a text or a list of items, and refusing by name what is kept or called there.
Not for: replies (`miudo.serve.openai.responses`).
Read next: `miudo.serve.fields`.
"""

from __future__ import annotations

from typing import Any

from miudo.protocol import Message
from miudo.serve.fields import FieldError, Fields

__all__ = ["refuse_rest", "take_metadata", "take_turns"]

_ROLES = ("user", "assistant", "system", "developer")
# Nothing is kept between requests, nothing is called, nothing is cut.
_UNSUPPORTED: dict[str, Any] = {
    "store": False, "previous_response_id": None, "conversation": None, "background": False,
    "background_options": None, "prompt": None, "tools": [], "tool_choice": "auto",
    "max_tool_calls": None, "include": [], "reasoning": None, "text": {"format": {"type": "text"}},
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
    return turns + [_turn(f"input[{i}]", value) for i, value in enumerate(given)]


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
    fields.flag("parallel_tool_calls", True)
    fields.ignore(
        "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prompt_cache_options",
    )  # fmt: skip
    fields.end()


def _turn(path: str, value: Any) -> Message:
    fields = _object(path, value)
    kind = fields.text("type", "message")
    if kind != "message":
        raise FieldError(f"{path}.type", f"is {kind!r:.60}", remedy="Give items of type message")
    role = fields.choice("role", _ROLES)
    content = fields.take("content")
    if isinstance(content, list):
        parts = (_part(f"{path}.content[{i}]", part) for i, part in enumerate(content))
        content = "".join(parts)
    if not isinstance(content, str):
        raise fields.wrong("content", content, "text, or a list of parts")
    fields.ignore("id", "status", "phase")  # as an earlier reply gave them
    fields.end()
    return Message("system" if role == "developer" else role, content)


def _part(path: str, value: Any) -> str:
    fields = _object(path, value)
    kind = fields.take("type")
    if kind not in ("input_text", "output_text"):
        raise FieldError(f"{path}.type", f"is {kind!r:.60}", remedy="Give parts of type input_text")
    text = fields.text("text")
    fields.refuse({"annotations": []})
    fields.ignore("logprobs")
    fields.end()
    return text


def _object(path: str, value: Any) -> Fields:
    if not isinstance(value, dict):
        raise FieldError(path, "is no object")
    return Fields(value, path)
