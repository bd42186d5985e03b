"""From what a request says to asks, and from answers to timings.

For: what all protocols that answer do alike.
Not for: reading their fields, or their shapes of reply.
Read next: `miudo.serve.answering`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miudo.engine.guides import Grammar, Guided, Penalties
from miudo.protocol import SamplingSettings
from miudo.serve.answering import Answer, Ask, Piece, Timings, TokenChance, answer
from miudo.serve.fields import FieldError
from miudo.serve.hosted import Hosted

__all__ = ["Drawing", "asks", "gathered", "timings"]


@dataclass(frozen=True, slots=True)
class Drawing:
    """What was asked about length and chance; `max_tokens` None: to the end of the context."""

    max_tokens: int | None
    n: int
    sampling: SamplingSettings
    penalties: Penalties | None
    stop: tuple[str, ...]
    stream: bool
    with_usage: bool


def asks(
    hosted: Hosted,
    prompt: Sequence[int],
    drawing: Drawing,
    *,
    top: int | None,
    scope: str,
    grammars: Sequence[Grammar | None] = (),
    shown: Mapping[int, bytes] | None = None,
) -> tuple[Ask, ...]:
    """Returns an ask for each choice; each has random numbers of its own, and a grammar's start.

    Raises FieldError with both counts where prompt and max_tokens are more than the context.
    """
    room = hosted.context - len(prompt)
    wanted = drawing.max_tokens
    if room < 1 or (wanted is not None and wanted > room):
        rest = "" if wanted is None else f" and {wanted} new ones are wanted"
        raise FieldError(
            None,
            f"the prompt has {len(prompt)} tokens{rest}, the model has {hosted.context} positions",
            remedy="Shorten the prompt" + ("" if wanted is None else ", or ask for fewer tokens"),
        )
    made = []
    for i, grammar in enumerate(grammars or [None] * drawing.n):
        sampling = dataclasses.replace(drawing.sampling, request=i)
        guide = None
        if drawing.penalties is not None or grammar is not None:
            guide = Guided(
                sampling, penalties=drawing.penalties, grammar=grammar, mask=hosted.token_mask
            )
        made.append(
            Ask(
                prompt=prompt,
                max_tokens=wanted or room,
                sampling=sampling,
                stop=drawing.stop,
                eos_ids=hosted.eos_ids,
                top=top,
                guide=guide,
                adapter=hosted.loaded.adapter,
                scope=scope,
                shown=shown or {},
            )
        )
    return tuple(made)


async def gathered(hosted: Hosted, asked: Sequence[Ask]) -> list[Answer]:
    """Returns the whole answers, in order; where one fails the others are given up."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_whole(hosted, ask)) for ask in asked]
    return [task.result() for task in tasks]


def timings(last: Piece) -> dict[str, Any]:
    """Returns milliseconds and rates, named as llama.cpp's server names them, and the energy."""
    spent = last.timings or Timings(0.0, 0.0)
    first, rest, energy = spent.first_token_s, spent.rest_s, spent.energy
    return {
        "prompt_n": last.prompt_tokens,
        "prompt_ms": round(first * 1e3, 3),
        "prompt_per_second": round(last.prompt_tokens / max(first, 1e-9), 2),
        "predicted_n": last.new_tokens,
        "predicted_ms": round(rest * 1e3, 3),
        "predicted_per_second": round(max(0, last.new_tokens - 1) / max(rest, 1e-9), 2),
        "energy": None
        if energy is None
        else {
            "joules": round(energy.energy_j, 6),
            "method": energy.method,
            "estimate": energy.estimate,
        },
    }


async def _whole(hosted: Hosted, ask: Ask) -> Answer:
    text, chances = "", list[TokenChance]()
    async for piece in answer(hosted.worker, hosted.loaded.tokenizer, ask):
        text += piece.text
        chances += piece.chances
        last = piece
    return Answer(text, tuple(chances), last)
