"""An assistant's turn as Anthropic's content blocks, whole or as the events of a stream.

For: blocks of text and of tool_use in replies.
Not for: blocks that come in (`miudo.serve.anthropic.reading`), or what a turn is.
Read next: `miudo.serve.turns`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from miudo.serve.turns import Call, Turn
from miudo.text.calls import CallEvent

__all__ = ["BlockStream", "blocks"]

_TEXT = {"type": "text", "text": ""}


def blocks(turn: Turn) -> list[dict[str, Any]]:
    """Returns the content of a whole reply; a call that was cut has no input."""
    said = [{**_TEXT, "text": turn.text}] if turn.text or not turn.calls else []
    called = [
        _call(call) | {"input": json.loads(call.arguments) if call.is_whole else {}}
        for call in turn.calls
    ]
    return said + called


class BlockStream:
    """The events of blocks, each of which opens, grows and stops, numbered from 0."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._index = -1

    def told(self, events: Sequence[CallEvent]) -> Iterator[dict[str, Any]]:
        """Yields what the turn's next events tell."""
        for event in events:
            if event.is_name and event.call is not None:
                yield from self._open(_call(self._turn.calls[event.call]))
                continue
            if event.call is None and self._index < 0:
                yield from self._open(_TEXT)
            delta = {"type": "text_delta", "text": event.text}
            if event.call is not None:
                delta = {"type": "input_json_delta", "partial_json": event.text}
            yield {"type": "content_block_delta", "index": self._index, "delta": delta}

    def end(self) -> Iterator[dict[str, Any]]:
        """Yields what closes the last block; where nothing was said, one that is empty."""
        if self._index < 0:
            yield from self._open(_TEXT)
        yield {"type": "content_block_stop", "index": self._index}

    def _open(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if self._index >= 0:
            yield {"type": "content_block_stop", "index": self._index}
        self._index += 1
        yield {"type": "content_block_start", "index": self._index, "content_block": block}
        if self._index == 0:
            yield {"type": "ping"}


def _call(call: Call) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
