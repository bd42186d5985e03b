"""Contents in which no token that frames turns survives: each is broken by one character.

For: what users, tools and other programs wrote, before a template puts it between its own marks.
Not for: rendering or encoding (`miudo.text.chat`).
Read next: `miudo.text.chat`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from miudo.errors import RequestError
from miudo.protocol import Message
from miudo.text.tokenizer import TextTokenizer
from miudo.text.tools import Tool, ToolMessage, as_given

__all__ = ["Breaker", "any_of"]

_PRIVATE_USE = range(0xE000, 0xF900)


class Breaker:
    """Breaks tokens with `mark`, a character that occurs nowhere in what is said.

    `source` and `variables` are the template's. Raises RequestError where there is no such
    character.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        source: str,
        variables: Mapping[str, str],
        messages: Sequence[Message],
        tools: Sequence[Tool],
    ) -> None:
        self._tokenizer = tokenizer
        # Specials, and any added token that the template writes.
        framing = [t for t in tokenizer.added_ids if t in tokenizer.special_ids or t in source]
        self._reserved = any_of(framing)
        given = [as_given(m) for m in messages] + [tool.as_given() for tool in tools]
        said = json.dumps(given, ensure_ascii=False)
        self.mark = _unused_character(set(source).union(said, *variables.values()))

    def message(self, message: Message) -> Message:
        """Returns the message with every text in it broken."""
        content = self._text(message.content, by_assistant=message.role == "assistant")
        if not isinstance(message, ToolMessage):
            return Message(message.role, content)
        calls = tuple(
            replace(
                call,
                id=self._text(call.id),
                arguments=json.dumps(self._value(json.loads(call.arguments)), ensure_ascii=False),
            )
            for call in message.calls
        )
        call_id, name = (
            None if text is None else self._text(text) for text in (message.call_id, message.name)
        )
        return replace(message, content=content, calls=calls, call_id=call_id, name=name)

    def tool(self, tool: Tool) -> Tool:
        """Returns the function with every text in it broken."""
        described = self._text(tool.description)
        return replace(tool, description=described, parameters=self._value(tool.parameters))

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {self._text(name): self._value(inner) for name, inner in value.items()}
        return [self._value(inner) for inner in value] if isinstance(value, list) else value

    def _text(self, content: str, *, by_assistant: bool = False) -> str:
        def cut(found: re.Match[str]) -> str:
            token = found[0]
            # What an assistant said may hold tokens like <think>, which its template looks for.
            if by_assistant and token not in self._tokenizer.special_ids:
                return token
            return token[:1] + self.mark + token[1:]

        if self._reserved is None:
            return content
        # Breaking one token can bare another that overlapped it.
        for _ in range(len(content) + 1):
            once = self._reserved.sub(cut, content)
            if once == content:
                break
            content = once
        return content


def any_of(tokens: Sequence[str]) -> re.Pattern[str] | None:
    """Returns a pattern that finds the tokens, the longest first; None for none."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if tokens else None


def _unused_character(used: set[str]) -> str:
    for code in _PRIVATE_USE:
        if chr(code) not in used:
            return chr(code)
    raise RequestError("messages use every private-use character there is")
