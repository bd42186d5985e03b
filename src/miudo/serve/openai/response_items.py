"""An assistant's turn as a response's output: items of messages and of calls, whole or as events.

For: `output`, and the events between a response's first and its last.
Not for: the response around them (`miudo.serve.openai.responses`).
Read next: `miudo.serve.turns`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from miudo.serve.turns import Call, Turn
from miudo.text.calls import CallEvent

__all__ = ["ItemStream", "items"]

_Event = tuple[str, dict[str, Any]]


def items(turn: Turn, number: str, status: str) -> list[dict[str, Any]]:
    """Returns the output; `number` is the response's, `status` that of the last item."""
    said = turn.text or not turn.calls
    made = [_message(number, "completed", [_part(turn.text)])] if said else []
    made += [_call(call, "completed" if call.is_whole else "incomplete") for call in turn.calls]
    if made[-1]["status"] == "completed":
        made[-1]["status"] = status
    return made


class ItemStream:
    """The events of a turn's items as kinds and values; each opens, grows and is done."""

    def __init__(self, turn: Turn, number: str) -> None:
        self._turn, self._number = turn, number
        self._index, self._calls = -1, 0

    def told(self, events: Sequence[CallEvent]) -> Iterator[_Event]:
        """Yields what the turn's next events tell."""
        for event in events:
            if event.call is None:
                if self._index < 0:
                    yield from self._open_message()
                yield "response.output_text.delta", self._part | {
                    "delta": event.text, "logprobs": [],
                }  # fmt: skip
            elif event.is_name:
                yield from self._open_call(Call(self._turn.calls[event.call].id, event.text))
            else:
                place = self._call_place(self._turn.calls[event.call])
                yield "response.function_call_arguments.delta", place | {"delta": event.text}

    def end(self, status: str) -> Iterator[_Event]:
        """Yields what closes the last item; where nothing was said, one that is empty."""
        if self._index < 0:
            yield from self._open_message()
        yield from self._close(status)

    def _open_message(self) -> Iterator[_Event]:
        self._index = 0
        item = _message(self._number, "in_progress", [])
        yield "response.output_item.added", {"output_index": 0, "item": item}
        yield "response.content_part.added", self._part | {"part": _part("")}

    def _open_call(self, call: Call) -> Iterator[_Event]:
        if self._index >= 0:
            yield from self._close("completed")
        self._index += 1
        self._calls += 1
        added = {"output_index": self._index, "item": _call(call, "in_progress")}
        yield "response.output_item.added", added

    def _close(self, status: str) -> Iterator[_Event]:
        if self._calls:
            call = self._turn.calls[self._calls - 1]
            done = {"name": call.name, "arguments": call.arguments}
            yield "response.function_call_arguments.done", self._call_place(call) | done
            item = _call(call, status if call.is_whole else "incomplete")
        else:
            text = self._turn.text
            yield "response.output_text.done", self._part | {"text": text, "logprobs": []}
            yield "response.content_part.done", self._part | {"part": _part(text)}
            item = _message(self._number, status, [_part(text)])
        yield "response.output_item.done", {"output_index": self._index, "item": item}

    @property
    def _part(self) -> dict[str, Any]:
        return {"output_index": 0, "item_id": f"msg_{self._number}", "content_index": 0}

    def _call_place(self, call: Call) -> dict[str, Any]:
        return {"output_index": self._index, "item_id": f"fc_{call.id}"}


def _message(number: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def _call(call: Call, status: str) -> dict[str, Any]:
    return {
        "id": f"fc_{call.id}",
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": status,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
