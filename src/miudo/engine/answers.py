"""A model on this machine as text alone: what a remote one is, without the network.

For: the same teacher, judge or route target from an engine, its tokenizer and chat template.
Not for: ids or log-probabilities (`miudo.protocol.Engine` has them), or many at once.
Read next: `miudo.engine.generate`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from miudo.config import ModelConfig
from miudo.engine.generate import GenerateSettings, generate
from miudo.protocol import Engine, Message, TextEvent
from miudo.text.prompt import prompt_ids
from miudo.text.tokenizer import TextTokenizer

__all__ = ["EngineGenerator"]


class EngineGenerator:
    """Implements `miudo.protocol.Generator` on an engine.

    Messages go through the chat template `template`; without one the last one's text is
    continued. Draws are keyed by the settings' seed and by the messages, so that an answer does
    not depend on what was asked before. Ends of text are the model's own.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: TextTokenizer,
        config: ModelConfig,
        settings: GenerateSettings,
        *,
        template: str | None = None,
    ) -> None:
        self._engine, self._tokenizer, self._config = engine, tokenizer, config
        self._settings, self._template = settings, template

    def generate(self, messages: Sequence[Message], *, max_tokens: int) -> Iterator[TextEvent]:
        """Yields the answer as it comes. Raises RequestError for a prompt without room behind."""
        s = self._settings
        text = json.dumps([[m.role, m.content] for m in messages]).encode()
        request = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        eos_ids = s.eos_ids or self._config.eos_ids
        settings = replace(
            s, max_tokens=max_tokens, eos_ids=eos_ids, sampling=replace(s.sampling, request=request)
        )
        ids = prompt_ids(self._tokenizer, messages, self._config, template=self._template)
        yield from generate(self._engine, self._tokenizer, ids, settings)
