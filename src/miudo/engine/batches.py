"""What goes into the scheduler and comes out of it, and how an engine carries that out.

For: servers and programs that run many requests on one engine.
Not for: deciding (`miudo.engine.scheduler`) or threads, which are the server's.
Read next: `miudo.engine.scheduler`.

Shapes: V vocab_size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from miudo.errors import RequestError
from miudo.meter import Energy
from miudo.protocol import Engine, FloatArray, SamplingSettings, SeqWork, StepOut

__all__ = ["Close", "Guide", "Limits", "Open", "Plan", "Progress", "Request", "carry_out"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step and the cache may hold; `pages` are of `page_positions` each.

    `context` is the engine's `config.max_positions`. Fewer `max_positions` in a step make the
    wait between two tokens shorter and long prompts slower. Raises RequestError for limits under
    which somebody would get nothing.
    """

    context: int
    pages: int
    page_positions: int = 32
    max_positions: int = 256
    max_sequences: int = 32
    max_kept: int = 64  # finished conversations that others may begin with

    def __post_init__(self) -> None:
        for name in ("context", "pages", "page_positions", "max_sequences"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)}", remedy="Give at least 1")
        if self.max_positions < self.max_sequences:
            raise RequestError(
                f"max_positions is {self.max_positions}, max_sequences {self.max_sequences}",
                remedy="Every sequence needs a position in a step",
            )


class Guide(Protocol):
    """How a request draws where that hangs on what it drew: a grammar, or penalties.

    `choice` may raise RequestError, which ends its request and no other.
    """

    def choice(self) -> tuple[SamplingSettings, npt.NDArray[np.bool_] | None]:
        """Returns settings and mask bool [V] of the next draw."""
        ...

    def take(self, token: int) -> bool:
        """Takes in what was drawn; returns whether nothing can follow it."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """A text to go on with; `number` is the caller's and nobody else's while it runs.

    `mask` is bool [V], True for ids that may be drawn; a `guide` stands in for it and `sampling`.
    Only requests of one `scope` begin with each other's positions: how soon an answer comes must
    not tell what somebody else asked. With `logits` each token comes with the row it was drawn
    from.
    """

    number: int
    prompt: Sequence[int]
    max_tokens: int
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    eos_ids: tuple[int, ...] = ()
    adapter: str | None = None
    mask: npt.NDArray[np.bool_] | None = None
    guide: Guide | None = None
    scope: str = ""
    logits: bool = False


@dataclass(frozen=True, slots=True)
class Open:
    """Open a conversation, as `slot`: empty, or with `length` positions of another slot."""

    slot: int
    prefix_of: int | None = None
    length: int = 0


@dataclass(frozen=True, slots=True)
class Close:
    """Close the conversation of `slot`."""

    slot: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A step: first the changes, in this order, then the work, whose conversations are slots.

    `numbers` are the requests that the works are for, in the same order. `failed` are requests
    whose guides know no further, and why: they have no work, and are to be stopped.
    """

    changes: tuple[Open | Close, ...]
    work: tuple[SeqWork, ...]
    numbers: tuple[int, ...]
    failed: tuple[tuple[int, RequestError], ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """New tokens of a request, and with the last why it ended.

    `finish_reason` is "stop", after an end token that is among the tokens or where a guide ends,
    or "length". `logprobs` are the tokens', `logits` [V] the row of the last, where asked for.
    `reused` ids of the prompt were not read, since another request's positions began alike.
    `energy` is the request's so far and `at` when the step was over, by the monotonic clock,
    where whoever runs the steps takes them.
    """

    number: int
    tokens: tuple[int, ...]
    finish_reason: str | None = None
    logprobs: tuple[float, ...] = ()
    logits: FloatArray | None = None
    energy: Energy | None = None
    reused: int = 0
    at: float = 0.0


def carry_out(engine: Engine, plan: Plan, conversations: dict[int, int]) -> list[StepOut]:
    """Returns what the plan's step gave; `conversations` maps slots and is kept up to date.

    What the step raises comes through: the changes are made then, and it is time to plan again.
    """
    for change in plan.changes:
        if isinstance(change, Close):
            engine.close(conversations.pop(change.slot))
        elif change.prefix_of is None:
            conversations[change.slot] = engine.open()
        else:
            source = conversations[change.prefix_of]
            conversations[change.slot] = engine.fork(source, change.length)
    return engine.step([_placed(work, conversations) for work in plan.work])


def _placed(work: SeqWork, conversations: Mapping[int, int]) -> SeqWork:
    """What `dataclasses.replace` would return, in a fifth of its time: 5 us of every step."""
    conversation = conversations[work.conversation]
    ids, want, sampling = work.ids, work.want, work.sampling
    return SeqWork(conversation, ids, want, sampling, work.mask, work.adapter, work.n_drafted)
