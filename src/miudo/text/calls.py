"""Calls out of what a model writes, piece by piece: text, names, and arguments as they come.

For: `tool_calls` in answers and in streams.
Not for: making sure that calls are well-formed, which a grammar did (`miudo.engine.calling`).
Read next: `miudo.text.tools` for the forms.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from miudo.text.tools import CallForm

__all__ = ["CallEvent", "CallReader"]


@dataclass(frozen=True, slots=True)
class CallEvent:
    """Text of the answer, where `call` is None; else of that call: its name, or arguments.

    `is_end` marks the arguments' last event: the call is whole.
    """

    call: int | None
    text: str
    is_name: bool = False
    is_end: bool = False


class _At(enum.Enum):
    TEXT = enum.auto()
    NAME = enum.auto()
    ARGUMENTS = enum.auto()
    AFTER = enum.auto()
    END = enum.auto()


class CallReader:
    """Takes text in pieces of any size; the events are the same but for where they are cut."""

    def __init__(self, form: CallForm) -> None:
        self._form = form
        self._at = _At.TEXT
        self._held = ""
        self._begun = False
        self._depth = 0
        self._in_string = self._escaped = False
        self.calls = 0

    @property
    def is_whole(self) -> bool:
        """Whether there are calls, and none was left in the middle."""
        return self.calls > 0 and self._at in (_At.AFTER, _At.END)

    def push(self, text: str) -> list[CallEvent]:
        """Returns what the text tells; what may yet be a marker is held."""
        self._held += text
        events: list[CallEvent] = []
        at = None
        while self._held and at is not self._at:
            at = self._at
            events += _STEPS[at](self)
        return [event for event in events if event.text]

    def finish(self) -> list[CallEvent]:
        """Returns text that was held and has turned out to be no marker."""
        held, self._held = self._held, ""
        return [CallEvent(None, held)] if held and self._at is _At.TEXT else []

    def _text(self) -> list[CallEvent]:
        opener = self._form.open + self._form.before
        found = self._held.find(opener)
        if not self._form.open and (found > 0 or self._begun):
            found = -1
        if found >= 0:
            said, self._held = self._held[:found].rstrip(), self._held[found + len(opener) :]
            self._at = _At.NAME
            return [CallEvent(None, said)]
        keep = 0
        if self._form.open or not self._begun:
            keep = _begins(self._held, opener)
            keep = keep if self._form.open or keep == len(self._held) else 0
        end = len(self._held[: len(self._held) - keep].rstrip())  # white space before calls goes
        said, self._held = self._held[:end], self._held[end:]
        self._begun = self._begun or bool(said)
        return [CallEvent(None, said)]

    def _name(self) -> list[CallEvent]:
        name, found, rest = self._held.partition(self._form.middle)
        if not found:
            return []
        self._held, self._at, self._depth = rest, _At.ARGUMENTS, 0
        self.calls += 1
        return [CallEvent(self.calls - 1, name, is_name=True)]

    def _arguments(self) -> list[CallEvent]:
        text, self._held = self._held, ""
        for place, character in enumerate(text, 1):
            if self._closes(character):
                text, self._held = text[:place], text[place:]
                self._at = _At.AFTER
                break
        return [CallEvent(self.calls - 1, text, is_end=self._at is _At.AFTER)]

    def _closes(self, character: str) -> bool:
        """Whether the object of arguments ends with this character."""
        if self._in_string:
            if self._escaped or character == "\\":
                self._escaped = not self._escaped
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return self._depth == 0
        return False

    def _after(self) -> list[CallEvent]:
        form = self._form
        another = form.after + form.between + form.before
        if form.between and self._held.startswith(another):
            self._held, self._at = self._held[len(another) :], _At.NAME
        elif not form.between or not another.startswith(self._held):
            self._at = _At.END
        return []

    def _end(self) -> list[CallEvent]:
        self._held = ""
        return []


_STEPS = {
    _At.TEXT: CallReader._text,
    _At.NAME: CallReader._name,
    _At.ARGUMENTS: CallReader._arguments,
    _At.AFTER: CallReader._after,
    _At.END: CallReader._end,
}


def _begins(text: str, marker: str) -> int:
    """Returns the length of the longest end of `text` that begins `marker`."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-size:]):
            return size
    return 0
