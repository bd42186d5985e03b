"""An assistant's turn as OpenAI's chats show it: a message, or the deltas of a stream.

For: `content` and `tool_calls`.
Not for: what the turn is (`miudo.serve.turns`).
Read next: `miudo.serve.turns`.
"""

from __future__ import annotations

from typing import Any

from miudo.serve.turns import Call, Turn
from miudo.text.calls import CallEvent

__all__ = ["delta", "message", "reason"]


def delta(turn: Turn, event: CallEvent) -> dict[str, Any]:
    """Returns what an event adds to the message."""
    if event.call is None:
        return {"content": event.text}
    if event.is_name:
        begun = _shown(Call(turn.calls[event.call].id, event.text))
        return {"tool_calls": [{"index": event.call, **begun}]}
    return {"tool_calls": [{"index": event.call, "function": {"arguments": event.text}}]}


def message(turn: Turn) -> dict[str, Any]:
    """Returns content and calls of the message so far; content is None for calls alone."""
    if not turn.calls:
        return {"content": turn.text}
    return {"content": turn.text or None, "tool_calls": [_shown(call) for call in turn.calls]}


def reason(turn: Turn, ended: str) -> str:
    """Returns why it ended, as this protocol says it."""
    return "tool_calls" if turn.is_call(ended) else ended


def _shown(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
