"""A conversation's ids, and which of them the assistant wrote.

For: training on answers alone, through any chat template.
Not for: rendering (`miudo.text.chat`) or packing many conversations (`miudo.data.samples`).
Read next: `miudo.text.chat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from miudo.config import ModelConfig
from miudo.errors import RequestError
from miudo.protocol import Message
from miudo.text.chat import ChatTemplate, encode_chat
from miudo.text.prompt import begun
from miudo.text.tokenizer import TextTokenizer

__all__ = ["Sample", "answer_sample"]


@dataclass(frozen=True, slots=True)
class Sample:
    """Ids, and for each whether it is to be learned."""

    ids: tuple[int, ...]
    counted: tuple[bool, ...]


def answer_sample(
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    config: ModelConfig,
) -> Sample:
    """Returns the conversation's ids; counted are the assistant's, the closing token included.

    An answer is what rendering up to it adds to rendering up to its prompt. What a template
    writes after the token that closes the answer (a line's end, say) is not counted: generation
    has stopped by then. Raises RequestError naming the message where the template writes
    something else for a beginning than for the whole.
    """
    whole = begun(encode_chat(tokenizer, template, messages, add_generation_prompt=False), config)
    counted = [False] * len(whole)
    special = set(tokenizer.special_ids.values())
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = begun(encode_chat(tokenizer, template, messages[:i]), config)
        until = begun(
            encode_chat(tokenizer, template, messages[: i + 1], add_generation_prompt=False), config
        )
        if until[: len(prompt)] != prompt or whole[: len(until)] != until:
            if until[: len(prompt)] != prompt:
                _refuse_border(template, messages, i)
            raise RequestError(
                f"messages[{i}]: the chat template writes a beginning of the conversation "
                "otherwise than the whole, so that its answers cannot be told apart",
                remedy="Train through another template, say --chat-template default",
            )
        ends = [at for at in range(len(prompt), len(until)) if until[at] in special]
        stop = ends[-1] + 1 if ends else len(until)
        counted[len(prompt) : stop] = [True] * (stop - len(prompt))
    return Sample(tuple(whole), tuple(counted))


def _refuse_border(template: ChatTemplate, messages: Sequence[Message], i: int) -> None:
    """Raises RequestError where the text is right and a token reaches over its border."""
    prompt = template.render(messages[:i])
    until = template.render(messages[: i + 1], add_generation_prompt=False)
    if until.startswith(prompt):
        raise RequestError(
            f"messages[{i}]: prompt and answer share a token where they meet: "
            f"{prompt[-12:]!r} and {until[len(prompt) :][:12]!r}",
            remedy="Put a space or a line's end between them, or train through a template with a "
            "mark there, say --chat-template default",
        )
