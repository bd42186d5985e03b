"""An assistant's turn: its text and its calls, whole or as the deltas of a stream.

For: one reading of what a model wrote, the same in both kinds of reply.
Not for: finding calls in text (`miudo.text.calls`).
Read next: `miudo.text.calls`.
"""

from __future__ import annotations

from typing import Any

from miudo.serve.openai.tools import call_id
from miudo.text.calls import CallEvent, CallReader
from miudo.text.tools import CallForm

__all__ = ["Turn"]


class Turn:
    """Takes an answer's text in pieces; `form` is that of calls, None where there are none."""

    def __init__(self, form: CallForm | None) -> None:
        self._reader = None if form is None else CallReader(form)
        self._text = ""
        self._calls: list[dict[str, Any]] = []

    def deltas(self, text: str, *, is_last: bool) -> list[dict[str, Any]]:
        """Returns what the next piece of text adds to the message."""
        if self._reader is None:
            events = [CallEvent(None, text)] if text else []
        else:
            events = self._reader.push(text) + (self._reader.finish() if is_last else [])
        return [self._delta(event) for event in events]

    def message(self) -> dict[str, Any]:
        """Returns content and calls of the message so far; content is None for calls alone."""
        if not self._calls:
            return {"content": self._text}
        return {"content": self._text or None, "tool_calls": self._calls}

    def reason(self, ended: str) -> str:
        """Returns why it ended, as this protocol says it."""
        return "tool_calls" if self._calls and ended == "stop" else ended

    def _delta(self, event: CallEvent) -> dict[str, Any]:
        if event.call is None:
            self._text += event.text
            return {"content": event.text}
        if event.is_name:
            function = {"name": event.text, "arguments": ""}
            call = {"id": call_id(), "type": "function", "function": function}
            self._calls.append(call)
            return {"tool_calls": [{"index": event.call, **call, "function": {**function}}]}
        self._calls[event.call]["function"]["arguments"] += event.text
        return {"tool_calls": [{"index": event.call, "function": {"arguments": event.text}}]}
