"""What a request to `auto` asks for: facts for the choice, and the body that a target gets.

For: reading what routing needs of a body; all else is the target's to read, and to refuse.
Not for: the choice (`miudo.route.decide`).
Read next: `miudo.serve.routing.cascade`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from miudo.protocol import Message
from miudo.route.targets import Facts
from miudo.serve.fields import FieldError, Fields

__all__ = ["CHAT", "TEXT", "Asked", "read_asked", "spoken"]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
_LENGTHS = ("max_tokens", "max_completion_tokens")
_EVERYWHERE = {
    "model", "messages", "temperature", "top_p", "seed", "stream", "stream_options",
    "user", "metadata", "safety_identifier", "prompt_cache_key", "store", *_LENGTHS,
}  # fmt: skip
"""Fields that another server is given too, or that change no answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A body without `route`, `stream` and `stream_options`, and what these said."""

    path: str
    body: Mapping[str, Any]
    facts: Facts
    stream: bool
    with_usage: bool

    def for_target(self, model: str, *, stream: bool = False) -> dict[str, Any]:
        """Returns the body that the target called `model` gets."""
        body = {**self.body, "model": model}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": self.with_usage}}
        return body


def read_asked(path: str, values: Mapping[str, Any]) -> Asked:
    """Returns what is asked. Raises FieldError for a wrong `route`, `stream` or length."""
    fields = Fields(values)
    demands = fields.table("route") or Fields({}, "route")
    stream = fields.flag("stream")
    options, with_usage = fields.table("stream_options"), False
    if options is not None:
        if not stream:
            raise FieldError("stream_options", "is given without stream")
        with_usage = options.flag("include_usage")
        options.end()
    body = {k: v for k, v in values.items() if k not in ("route", "stream", "stream_options")}
    return Asked(path, body, _facts(path, body, demands), stream, with_usage)


def spoken(values: Mapping[str, Any]) -> list[Message]:
    """Returns the messages of a chat. Raises FieldError for what is none, or no text."""
    given = values.get("messages")
    if not isinstance(given, list) or not given:
        raise FieldError("messages", "is no list of messages", remedy="Give at least one")
    messages = []
    for i, value in enumerate(given):
        fields = Fields(value if isinstance(value, dict) else {}, f"messages[{i}]")
        role = fields.choice("role", ("system", "developer", "user", "assistant"))
        content = fields.take("content")
        text = _text(content)
        if text is None:
            raise fields.wrong("content", content, "text")
        fields.ignore("name")
        fields.end()
        messages.append(Message("system" if role == "developer" else role, text))
    return messages


def _facts(path: str, body: Mapping[str, Any], demands: Fields) -> Facts:
    length = _length(path, body)
    most_s = 24 * 3600.0
    given = demands.take("deadline_s")
    deadline_s = None
    if given is not None:
        deadline_s = Fields({"deadline_s": given}, "route").number("deadline_s", 0.0, most_s)
        if length is None:
            raise FieldError(
                "route.deadline_s", "is given without max_tokens", remedy="Say how long at most"
            )
    use = demands.take("use")
    if use is not None and not isinstance(use, str):
        raise demands.wrong("use", use, "text")
    others = {k for k, v in body.items() if v is not None and k not in _EVERYWHERE | {"prompt"}}
    if body.get("n") == 1:
        others -= {"n"}
    facts = Facts(
        text=_last_user(body) if path == CHAT else _prompt(body),
        max_tokens=length,
        needs=frozenset(others | {"chat" if path == CHAT else "completions"}),
        offline=demands.flag("offline"),
        stays=demands.flag("stays"),
        deadline_s=deadline_s,
        use=use,
    )
    demands.end()
    return facts


def _length(path: str, body: Mapping[str, Any]) -> int | None:
    names = _LENGTHS if path == CHAT else _LENGTHS[:1]
    given = [body[name] for name in names if type(body.get(name)) is int]
    return given[-1] if given else (None if path == CHAT else 16)  # that protocol's default


def _last_user(body: Mapping[str, Any]) -> str | None:
    """What is none is the target's to refuse."""
    messages = body.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            return _text(message.get("content"))
    return None


def _prompt(body: Mapping[str, Any]) -> str | None:
    prompt = body.get("prompt")
    parts = prompt if isinstance(prompt, list) else [prompt]
    texts = [part for part in parts if isinstance(part, str)]
    return "\n".join(texts) if texts and len(texts) == len(parts) else None


def _text(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [
        part["text"]
        for part in content
        if isinstance(part, dict)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    ]
    return "".join(texts) if len(texts) == len(content) else None
