"""The loop that turns engine steps into text.

For: one conversation, from prompt ids to text events.
Not for: many conversations at once (a scheduler's work) or chat templates (`miudo.text.chat`).
Read next: `miudo.protocol.Engine.step`, then `native/model/forward.cc`: the path of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from miudo.errors import RequestError
from miudo.protocol import Engine, SamplingSettings, SeqWork, TextEvent, Tokenizer
from miudo.text.stream import TextStream

__all__ = ["GenerateSettings", "generate"]


@dataclass(frozen=True, slots=True)
class GenerateSettings:
    """When to stop and how to draw; generation also stops where the model's positions end.

    `adapter` names one that the engine was given.
    """

    max_tokens: int = 256
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stop: tuple[str, ...] = ()
    eos_ids: tuple[int, ...] = ()
    adapter: str | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}", remedy="Give at least 1")


def generate(
    engine: Engine, tokenizer: Tokenizer, prompt: Sequence[int], settings: GenerateSettings
) -> Iterator[TextEvent]:
    """Yields text as it is generated; the last event says why it ended, with counts.

    `finish_reason` is "stop" (end token or stop string) or "length". Raises RequestError
    for a prompt that leaves no position free.
    """
    room = engine.config.max_positions - len(prompt)
    if room < 1:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens, the model {engine.config.max_positions} "
            "positions",
            remedy="Shorten the prompt",
        )
    conversation = engine.open()
    try:
        yield from _continue(
            engine,
            TextStream(tokenizer, settings.stop, after=prompt),
            conversation,
            prompt,
            settings,
            _tokens_only(engine, tokenizer),
        )
    finally:
        engine.close(conversation)


def _continue(
    engine: Engine,
    stream: TextStream,
    conversation: int,
    prompt: Sequence[int],
    settings: GenerateSettings,
    mask: npt.NDArray[np.bool_] | None,
) -> Iterator[TextEvent]:
    pending, made, reason = prompt, 0, "length"
    limit = min(settings.max_tokens, engine.config.max_positions - len(prompt) + 1)
    while made < limit:
        work = SeqWork(
            conversation, pending, sampling=settings.sampling, mask=mask, adapter=settings.adapter
        )
        (out,) = engine.step([work])
        if out.token is None:
            raise RequestError("the engine returned no token")
        made += 1
        if out.token in settings.eos_ids:
            reason = "stop"
            break
        if text := stream.push(out.token):
            yield TextEvent(text)
        if stream.stopped is not None:
            reason = "stop"
            break
        pending = (out.token,)
    usage = {"prompt_tokens": len(prompt), "completion_tokens": made}
    yield TextEvent(stream.finish(), reason, usage)


def _tokens_only(engine: Engine, tokenizer: Tokenizer) -> npt.NDArray[np.bool_] | None:
    """Rows that pad a vocabulary to a round size are no tokens: they must not be drawn."""
    size = engine.config.vocab_size
    return None if tokenizer.vocab_size >= size else np.arange(size) < tokenizer.vocab_size
