"""The loop that turns engine steps into text.

For: one conversation, from prompt ids to text events.
Not for: many conversations at once (a scheduler's work) or chat templates (`miudo.text.chat`).
Read next: `miudo.protocol.Engine.step`, then `native/model/forward.cc`: the path of a token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from miudo.engine.batches import Guide
from miudo.engine.speculate import Speculation, TextSpeculator
from miudo.errors import RequestError
from miudo.protocol import Engine, SamplingSettings, SeqWork, TextEvent, Tokenizer, Want
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
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    settings: GenerateSettings,
    *,
    speculation: Speculation | None = None,
    guide: Guide | None = None,
) -> Iterator[TextEvent]:
    """Yields text as it is generated; the last event says why it ended, with counts.

    `finish_reason` is "stop" (end token or stop string) or "length". With `speculation`, which
    may be kept from text to text, tokens are guessed where that pays; they stay the same.
    A `guide`, without guesses, stands for the sampling. Raises RequestError for too long a prompt.
    """
    room = (positions := engine.config.max_positions) - len(prompt)
    if room < 1:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens, the model {positions} positions",
            remedy="Shorten the prompt",
        )
    mask = _tokens_only(engine, tokenizer)
    limit = min(settings.max_tokens, room + 1)  # the last token needs no position of its own
    stream = TextStream(tokenizer, settings.stop, after=prompt)
    made, reason, speculator = 0, "length", None
    with contextlib.ExitStack() as stack:
        if speculation is not None and guide is None:
            speculator = speculation.begin(engine.config.vocab_size, settings.sampling, mask)
            stack.callback(speculator.close)
        tokens = _tokens(engine, prompt, settings, mask, limit, speculator, guide)
        for token in stack.enter_context(contextlib.closing(tokens)):
            made += 1
            through = guide is not None and guide.take(token)
            if not (ended := token in settings.eos_ids) and (text := stream.push(token)):
                yield TextEvent(text)
            if ended or through or stream.stopped is not None:
                reason = "stop"
                break
    usage = {"prompt_tokens": len(prompt), "completion_tokens": made}
    if speculator is not None:
        usage |= {"drafted_tokens": speculator.drafted, "accepted_tokens": speculator.held}
    yield TextEvent(stream.finish(), reason, usage)


def _tokens(
    engine: Engine,
    prompt: Sequence[int],
    settings: GenerateSettings,
    mask: npt.NDArray[np.bool_] | None,
    limit: int,
    speculator: TextSpeculator | None,
    guide: Guide | None,
) -> Generator[int]:
    """Yields up to `limit` tokens that follow the prompt."""
    conversation = engine.open()
    try:
        ids, taken = list(prompt), 0  # all ids known, and how many the engine has
        while (left := limit - (len(ids) - len(prompt))) > 0:
            draft = speculator.draft(ids, left - 1) if speculator is not None and taken else ()
            draw = (settings.sampling, mask) if guide is None else guide.choice()
            given, how = [*ids[taken:], *draft], (*draw, settings.adapter)
            work = SeqWork(conversation, given, Want.SAMPLE, *how, n_drafted=len(draft))
            (out,) = engine.step([work])
            if not out.tokens:
                raise RequestError("the engine returned no token")
            if speculator is not None and taken:
                speculator.learn(out.tokens)
            taken = len(ids) + len(out.tokens) - 1
            ids += out.tokens
            yield from out.tokens
    finally:
        engine.close(conversation)


def _tokens_only(engine: Engine, tokenizer: Tokenizer) -> npt.NDArray[np.bool_] | None:
    """Rows that pad a vocabulary to a round size are no tokens: they must not be drawn."""
    size = engine.config.vocab_size
    return None if tokenizer.vocab_size >= size else np.arange(size) < tokenizer.vocab_size
