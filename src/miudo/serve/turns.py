"""An assistant's turn as it is written: its text and its calls, the same whole and streamed.

For: every protocol's replies.
Not for: finding calls in text (`miudo.text.calls`), or any protocol's JSON.
Read next: `miudo.text.calls`.
"""

from __future__ import annotations

from dataclasses import dataclass

from miudo.serve.toolbox import call_id
from miudo.text.calls import CallEvent, CallReader
from miudo.text.tools import CallForm

__all__ = ["Call", "Turn"]


@dataclass(slots=True)
class Call:
    """A call so far; `arguments` is the JSON text of an object, all of it where `is_whole`."""

    id: str
    name: str
    arguments: str = ""
    is_whole: bool = False


class Turn:
    """Takes an answer's text in pieces; `form` is that of calls, None where there are none."""

    def __init__(self, form: CallForm | None) -> None:
        self._reader = None if form is None else CallReader(form)
        self.text = ""
        self.calls: list[Call] = []

    def push(self, text: str, *, is_last: bool) -> list[CallEvent]:
        """Returns what the next piece of text tells; `calls` has the call that it tells of."""
        if self._reader is None:
            events = [CallEvent(None, text)] if text else []
        else:
            events = self._reader.push(text) + (self._reader.finish() if is_last else [])
        for event in events:
            self._note(event)
        return events

    def is_call(self, ended: str) -> bool:
        """Whether it ended, as `ended` says, with calls to be answered.

        It did not where the length or a stop string cut a call.
        """
        return ended == "stop" and self._reader is not None and self._reader.is_whole

    def _note(self, event: CallEvent) -> None:
        if event.call is None:
            self.text += event.text
        elif event.is_name:
            self.calls.append(Call(call_id(), event.text))
        else:
            call = self.calls[event.call]
            call.arguments += event.text
            call.is_whole = event.is_end
