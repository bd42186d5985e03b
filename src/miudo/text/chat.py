"""Chat turns to text and ids by a model's own template, which is not trusted.

For: rendering in a bounded sandbox, and ids in which no content can pass for a role.
Not for: images, or templates from a request.
Read next: `miudo.text.sandbox` for what a template may do; `miudo.text.tools` for functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from miudo.errors import RequestError, TokenizerError
from miudo.limits import LIMITS, Limits
from miudo.protocol import Message
from miudo.text.breaking import Breaker, any_of
from miudo.text.budget import Budget
from miudo.text.sandbox import bind_template, compile_template
from miudo.text.tokenizer import TextTokenizer
from miudo.text.tools import Tool, ToolMessage, as_given, in_words, knows_tools

__all__ = ["DEFAULT_TEMPLATE", "ROLES", "ChatTemplate", "encode_chat", "parse_messages"]

ROLES = ("system", "user", "assistant")
# Uses `miudo.text.tokenizer.DEFAULT_SPECIALS`, no white space: a turn costs two ids.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_MESSAGES = 4096
_STEPS = 100_000
_SECONDS = 0.2  # of processor time
_CHARS = 2 << 20


class ChatTemplate:
    """A Jinja chat template as Hugging Face writes them, compiled once.

    `variables` are texts it may name, such as bos_token and eos_token. Raises TokenizerError for
    a source that is too long, cannot be compiled, or includes, imports or extends another.
    """

    def __init__(
        self,
        source: str,
        *,
        variables: Mapping[str, str] | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        size = len(source.encode("utf-8", "replace"))
        if size > limits.template_bytes:
            raise TokenizerError(
                f"has {size} bytes, the limit is {limits.template_bytes}", where="chat template"
            )
        self.source = source
        self.variables = dict(variables or {})
        self._code = compile_template(source, _budget())

    def render(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
    ) -> str:
        """Returns the conversation as text, ending where the assistant speaks.

        A template that knows no tools gets them told in words (`miudo.text.tools.in_words`).
        Raises RequestError, naming the message by its number, for roles and contents that
        cannot be; and for a template that refuses them, fails, or runs or writes too much.
        """
        turns = parse_messages(messages)
        if add_generation_prompt and turns[-1].role == "assistant":
            raise RequestError(
                f"messages[{len(turns) - 1}] is the assistant's, there is nothing to answer",
                remedy="End with a user message",
            )
        template = bind_template(self._code, _budget())
        known = knows_tools(self.source)
        told = turns if known else in_words(turns, tools)
        values = {
            **self.variables,
            "messages": [as_given(message) for message in told],
            "add_generation_prompt": add_generation_prompt,
            # Templates ask whether there are any.
            "tools": [tool.as_given() for tool in tools] if known and tools else None,
            "documents": None,
        }
        try:
            return template.render(values)
        except RequestError:
            raise
        except Exception as error:
            raise RequestError(
                f"fails on these messages ({type(error).__name__}: {str(error)[:200]})",
                where="chat template",
            ) from error


def parse_messages(values: Any) -> list[Message]:
    """Returns messages from Message objects or mappings with exactly role and content.

    The role tool, and an assistant's calls, come as `miudo.text.tools.ToolMessage` alone.
    Raises RequestError naming the number of the message that is wrong.
    """
    if not isinstance(values, list | tuple) or not values:
        raise RequestError("messages is empty or no list", remedy="Give at least one message")
    if len(values) > _MESSAGES:
        raise RequestError(f"messages[{_MESSAGES}] is one too many, the limit is {_MESSAGES}")
    return [_parse_message(i, value) for i, value in enumerate(values)]


def encode_chat(
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    messages: Sequence[Message | Mapping[str, Any]],
    *,
    tools: Sequence[Tool] = (),
    add_generation_prompt: bool = True,
) -> list[int]:
    """Returns the ids of the rendered conversation; specials come from the template alone.

    A special token written in a content is first broken by a character that occurs nowhere
    else; the rendered text is cut there, so that both halves are encoded as plain text. The
    template still sees the content's other characters, so that trimming and the like work.
    """
    turns = parse_messages(messages)
    breaker = Breaker(tokenizer, template.source, template.variables, turns, tools)
    text = template.render(
        [breaker.message(message) for message in turns],
        tools=[breaker.tool(tool) for tool in tools],
        add_generation_prompt=add_generation_prompt,
    )
    if breaker.mark not in text:
        ids = tokenizer.encode(text, allow_special=True)
        if _specials_in(ids, tokenizer) == _literals_in(text, tokenizer):
            return ids
    return _encode_pieces(tokenizer, text, breaker.mark)


def _budget() -> Budget:
    return Budget(steps=_STEPS, seconds=_SECONDS, chars=_CHARS)


def _parse_message(index: int, value: Any) -> Message:
    if isinstance(value, Mapping):
        if set(value) != {"role", "content"}:
            raise RequestError(
                f"messages[{index}] has the keys {sorted(map(str, value))[:10]}",
                remedy="Give role and content",
            )
        value = Message(value["role"], value["content"])
    if not isinstance(value, Message):
        raise RequestError(f"messages[{index}] is a {type(value).__name__}, not a message")
    may_be_tool = isinstance(value, ToolMessage) and value.role == "tool"
    if value.role not in ROLES and not may_be_tool:
        raise RequestError(
            f"messages[{index}].role is {value.role!r:.60}",
            remedy=f"Choose one of {', '.join(ROLES)}",
        )
    if not isinstance(value.content, str):
        raise RequestError(
            f"messages[{index}].content is a {type(value.content).__name__}, not text",
            remedy="Give text alone: no image or other part is read",
        )
    return value


def _specials_in(ids: Sequence[int], tokenizer: TextTokenizer) -> list[int]:
    special = set(tokenizer.special_ids.values())
    return [i for i in ids if i in special]


def _literals_in(text: str, tokenizer: TextTokenizer) -> list[int]:
    pattern = any_of(list(tokenizer.special_ids))
    return [tokenizer.special_ids[t] for t in pattern.findall(text)] if pattern else []


def _encode_pieces(tokenizer: TextTokenizer, text: str, mark: str) -> list[int]:
    """Encodes the text between marks and literal specials as plain text, each by itself."""
    pattern = any_of([*tokenizer.special_ids, mark])
    if pattern is None:
        raise RequestError("no special token and no mark to cut at")
    ids: list[int] = []
    start = 0
    for found in [*pattern.finditer(text), None]:
        end = len(text) if found is None else found.start()
        ids += tokenizer.encode(text[start:end]) if end > start else []
        if found is not None:
            ids += [] if found[0] == mark else [tokenizer.special_ids[found[0]]]
            start = found.end()
    return ids
