"""The ids that generation starts from: a chat's, or a plain text's.

For: one rule for command line, server and samples about templates and the first id.
Not for: rendering (`miudo.text.chat`) or generating (`miudo.engine.generate`).
Read next: `miudo.text.chat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from miudo.config import ModelConfig
from miudo.protocol import Message
from miudo.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from miudo.text.chat import ChatTemplate

__all__ = ["begun", "model_template", "prompt_ids"]


def prompt_ids(
    tokenizer: TextTokenizer,
    messages: Sequence[Message],
    config: ModelConfig,
    *,
    template: str | None,
) -> list[int]:
    """Returns the ids of `messages` through `template`; without one, of the last one's text.

    They begin with the model's bos id where it has one and the template wrote none. Raises
    RequestError and TokenizerError as `encode_chat` does.
    """
    if template is None:
        ids = tokenizer.encode(messages[-1].content)
    else:
        # Jinja is imported for templates alone: plain text starts without it.
        from miudo.text.chat import encode_chat

        ids = encode_chat(tokenizer, model_template(tokenizer, config, template), messages)
    return begun(ids, config)


def model_template(tokenizer: TextTokenizer, config: ModelConfig, source: str) -> ChatTemplate:
    """Returns the template `source` with the special tokens that it may name."""
    from miudo.text.chat import ChatTemplate

    return ChatTemplate(source, variables=_special_texts(tokenizer, config))


def begun(ids: list[int], config: ModelConfig) -> list[int]:
    """Returns `ids` with the model's bos id before them, where it has one and they do not."""
    if config.bos_id is None or ids[:1] == [config.bos_id]:
        return ids
    return [config.bos_id, *ids]


def _special_texts(tokenizer: TextTokenizer, config: ModelConfig) -> dict[str, str]:
    """Returns the tokens that templates of other makers name.

    What the tokenizer's files call so counts: a token called bos_token may begin no text.
    """
    ids = {"bos_token": config.bos_id, "eos_token": next(iter(config.eos_ids), None)}
    texts = {number: text for text, number in tokenizer.special_ids.items()}
    by_role = {name: texts[number] for name, number in ids.items() if number in texts}
    named = tokenizer.spec.named.items()
    return by_role | {name: text for name, text in named if text in tokenizer.special_ids}
