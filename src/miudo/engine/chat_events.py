"""The events of a chat answer, out of a body that is not trusted.

For: server-sent chunks of the OpenAI chat protocol, or one JSON object from a server that does
not stream.
Not for: sending requests (`miudo.engine.remote`).
Read next: `miudo.engine.remote`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from miudo.errors import DataError, RequestError
from miudo.protocol import TextEvent

__all__ = ["AgainError", "body_lines", "streamed_events", "whole_events"]

_ANSWER_BYTES = 16 << 20
_LINE_BYTES = 4 << 20


class AgainError(Exception):
    """What may go better the next time. `after_s` is when the server wants to be asked again."""

    def __init__(self, what: str, remedy: str, after_s: float | None = None) -> None:
        super().__init__(what)
        self.what, self.remedy, self.after_s = what, remedy, after_s


_BROKEN = "Try again; a shorter answer may get through"


def streamed_events(lines: Iterator[str], where: str) -> Iterator[TextEvent]:
    """Yields the events of server-sent lines. Raises AgainError if they end before the answer."""
    reason, usage = None, dict[str, int]()
    for line in lines:
        if not line.startswith("data:"):  # comments, event names, blank lines
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            yield TextEvent("", reason or "stop", usage)
            return
        values = _object(data, where)
        usage |= _usage(values)
        for choice in _choices(values, where):
            reason = choice.get("finish_reason") or reason
            text = _text(choice.get("delta"), where)
            if text:
                yield TextEvent(text)
    if reason is None:
        raise AgainError("breaks off in the middle of an answer", _BROKEN)
    yield TextEvent("", reason, usage)  # a server that does not say [DONE]


def whole_events(text: str, where: str) -> Iterator[TextEvent]:
    """Yields the events of an answer in one piece, from a server that does not stream."""
    values = _object(text, where)
    choices = _choices(values, where)
    if not choices:
        raise DataError("the answer has no choices", where=where, remedy=_PROTOCOL)
    yield TextEvent(_text(choices[0].get("message"), where))
    yield TextEvent("", choices[0].get("finish_reason") or "stop", _usage(values))


_PROTOCOL = "Check that the address is that of an OpenAI-compatible server"


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the answer is not JSON ({error})", where=where, remedy=_PROTOCOL) from (
            error
        )
    if not isinstance(values, dict):
        raise DataError("the answer is not a JSON object", where=where, remedy=_PROTOCOL)
    if values.get("error"):
        raise RequestError(f"says {values['error']!r:.300}", where=where)
    return values


def _choices(values: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    found = values.get("choices")
    if not isinstance(found, list) or not all(isinstance(choice, dict) for choice in found):
        raise DataError("the answer has no choices", where=where, remedy=_PROTOCOL)
    return found


def _text(part: Any, where: str) -> str:
    found = part.get("content") if isinstance(part, dict) else None
    if found is None:
        return ""
    if not isinstance(found, str):
        raise DataError(f"the answer's content is {found!r:.60}", where=where, remedy=_PROTOCOL)
    return found


def _usage(values: Mapping[str, Any]) -> dict[str, int]:
    found = values.get("usage")
    counts = found if isinstance(found, dict) else {}
    return {
        name: counts[name]
        for name in ("prompt_tokens", "completion_tokens")
        if type(counts.get(name)) is int
    }


def body_lines(pieces: Iterator[bytes], where: str) -> Iterator[str]:
    """Yields lines, of a body that is not trusted to end."""
    rest, size = b"", 0
    for piece in pieces:
        rest, size = rest + piece, size + len(piece)
        *whole, rest = rest.split(b"\n")
        if size > _ANSWER_BYTES or len(rest) > _LINE_BYTES:
            raise DataError(f"an answer of more than {len(rest)} bytes", where=where)
        yield from (line.decode("utf-8", "replace").rstrip("\r") for line in whole)
    if rest:
        yield rest.decode("utf-8", "replace")
