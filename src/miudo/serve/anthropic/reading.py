"""What a request to `/v1/messages` says, field by field.

For: turns and the system's text out of strings and content blocks; how long and how to draw.
Not for: replies (`miudo.serve.anthropic.messages`).
Read next: `miudo.serve.fields`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from miudo.protocol import Message, SamplingSettings
from miudo.serve.asking import Drawing
from miudo.serve.fields import FieldError, Fields

__all__ = ["take_drawing", "take_turns"]

_MAX_TOKENS = 1 << 31
_MAX_STOPS = 16
_UNSUPPORTED = {
    "tools": None, "tool_choice": None, "container": None, "context_management": None,
    "mcp_servers": None, "output_config": None, "output_format": None, "cache_control": None,
    "inference_geo": None, "speed": "standard", "thinking": {"type": "disabled"},
    "diagnostics": None, "user_profile_id": None,
}  # fmt: skip


def take_turns(fields: Fields) -> list[Message]:
    """Takes `system` and `messages`; refuses fields that exist elsewhere and not here.

    Raises FieldError for what is no text, naming the block.
    """
    given = fields.take("messages")
    if not isinstance(given, list) or not given:
        raise FieldError("messages", "is no list of messages", remedy="Give at least one")
    turns = []
    system = fields.take("system")
    if system is not None:
        turns.append(Message("system", _content("system", system)))
    turns += [_turn(f"messages[{i}]", value) for i, value in enumerate(given)]
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


def _turn(path: str, value: Any) -> Message:
    fields = _object(path, value)
    role = fields.choice("role", ("user", "assistant"))
    message = Message(role, _content(fields.name("content"), fields.take("content")))
    fields.end()
    return message


def _content(path: str, value: Any) -> str:
    """Returns the text of a string, or of a list of blocks."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise FieldError(path, f"is {value!r:.60}", remedy="Give a text, or a list of blocks")
    return "".join(_block(f"{path}[{i}]", block) for i, block in enumerate(value))


def _block(path: str, value: Any) -> str:
    fields = _object(path, value)
    kind = fields.take("type")
    if not isinstance(kind, str) or kind not in _BLOCKS:
        known = ", ".join(_BLOCKS)
        raise FieldError(f"{path}.type", f"is {kind!r:.60}", remedy=f"Give blocks of type {known}")
    text = _BLOCKS[kind](fields)
    fields.end()
    return text


def _text(fields: Fields) -> str:
    fields.refuse({"citations": []})
    fields.ignore("cache_control")  # beginnings are kept anyway
    return fields.text("text")


_BLOCKS: dict[str, Callable[[Fields], str]] = {"text": _text}


def _object(path: str, value: Any) -> Fields:
    if not isinstance(value, dict):
        raise FieldError(path, "is no object")
    return Fields(value, path)
