"""Functions that a model may call: how they are told to it, and in what form it calls them.

For: tools in any model's chat, by its template where that knows them and in words where not.
Not for: holding calls to their schemas (`miudo.engine.calling`), or running anything.
Read next: `miudo.text.calls`, which reads calls out of what a model writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miudo.errors import RequestError
from miudo.protocol import Message

__all__ = [
    "CallForm",
    "Tool",
    "ToolCall",
    "ToolMessage",
    "as_given",
    "call_form",
    "in_words",
    "knows_tools",
]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function: its name, what it is for, and the JSON Schema of its arguments, an object's."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def as_given(self) -> dict[str, Any]:
        """Returns the shape in which templates and clients write a function."""
        function = {"name": self.name, "description": self.description}
        return {"type": "function", "function": {**function, "parameters": dict(self.parameters)}}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function; `arguments` is the JSON text of an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolMessage(Message):
    """An assistant's turn with `calls`, or a turn of role tool: what the call `call_id` gave."""

    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class CallForm:
    """What stands around calls in a model's text, in the order in which it is written.

    open before NAME middle ARGUMENTS after (between before NAME middle ARGUMENTS after)* close

    Text may go before `open`; where that is empty, calls are the whole answer. Without `between`
    there is one call at most.
    """

    open: str
    before: str
    middle: str
    after: str
    between: str
    close: str


_NAME, _ARGUMENTS, _PARAMETERS = '{"name": "', '", "arguments": ', '", "parameters": '
_TAGGED = CallForm(
    "<tool_call>\n", _NAME, _ARGUMENTS, "}", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>"
)
# What a template that knows tools holds, and the form that its model was trained on.
_FORMS: tuple[tuple[str, CallForm], ...] = (
    ("<|/tool_call|>", CallForm("<|tool_call|>[", _NAME, _ARGUMENTS, "}", ", ", "]<|/tool_call|>")),
    ("<|tool_call|>", CallForm("<|tool_call|>[", _NAME, _ARGUMENTS, "}", ", ", "]")),
    ("<tool_call>", _TAGGED),
    ("[TOOL_CALLS]", CallForm("[TOOL_CALLS][", _NAME, _ARGUMENTS, "}", ", ", "]")),
    ("Environment: ipython", CallForm("", _NAME, _PARAMETERS, "}", "", "")),
)
_OTHER_FORM = re.compile(r"<function=|<parameter=|<arg_key>|\[TOOL_CALLS\].{0,80}\[ARGS\]", re.S)
_TOLD = (
    "You may call functions. Their signatures, as JSON, one a line:\n<tools>\n{tools}\n</tools>\n"
    "To call one, answer with its name and its arguments as JSON, in this form:\n"
    '<tool_call>\n{{"name": "the name", "arguments": {{}}}}\n</tool_call>\n'
    "What it returned comes within <tool_response></tool_response>."
)


def as_given(message: Message) -> dict[str, Any]:
    """Returns a message as templates look at it; arguments are values, which they write as JSON."""
    given: dict[str, Any] = {"role": message.role, "content": message.content}
    if isinstance(message, ToolMessage):
        if message.calls:
            given["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.loads(call.arguments)},
                }
                for call in message.calls
            ]
        given |= {} if message.call_id is None else {"tool_call_id": message.call_id}
        given |= {} if message.name is None else {"name": message.name}
    return given


def knows_tools(source: str) -> bool:
    """Returns whether a template's source looks at tools by itself."""
    return re.search(r"\btools\b", source) is not None


def call_form(source: str) -> CallForm:
    """Returns the form of calls that goes with a template.

    Raises RequestError where it knows tools, in a form that is not read here.
    """
    if not knows_tools(source):
        return _TAGGED
    if _OTHER_FORM.search(source) is None:
        for mark, form in _FORMS:
            if mark in source:
                return form
    raise RequestError(
        "the model's chat template has calls in a form that is not read",
        where="tools",
        remedy="Leave the tools out, or serve a model whose calls are JSON",
    )


def in_words(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Returns messages that say all about tools in plain turns, for templates that know none.

    The functions go into the system text, calls into the assistant's, and what they gave into
    the user's.
    """
    said: list[Message] = []
    for i, message in enumerate(messages):
        plain = _plain(message)
        if message.role == "tool" and i and messages[i - 1].role == "tool":
            plain = Message("user", f"{said.pop().content}\n{plain.content}")
        said.append(plain)
    if not tools:
        return said
    lines = "\n".join(json.dumps(t.as_given(), ensure_ascii=False) for t in tools)
    told = _TOLD.format(tools=lines)
    if said[0].role == "system":
        return [Message("system", f"{said[0].content}\n\n{told}"), *said[1:]]
    return [Message("system", told), *said]


def _plain(message: Message) -> Message:
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
    if not isinstance(message, ToolMessage) or not message.calls:
        return Message(message.role, message.content)
    form = _TAGGED
    calls = (f"{form.before}{c.name}{form.middle}{c.arguments}{form.after}" for c in message.calls)
    text = form.open + form.between.join(calls) + form.close
    return Message(message.role, f"{message.content}\n{text}" if message.content else text)
