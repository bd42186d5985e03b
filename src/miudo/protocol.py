"""The contracts between rooms: Engine, Generator, Tokenizer and what passes between them.

For: token ids in, token ids and numbers out. Scheduler, server, evaluation, distillation,
grammar and adapters all stand on `Engine.step`; text lives above it.
Not for: implementations (`miudo.engine`, `miudo.decoder.torch_engine`, `miudo.text`).
Read next: `miudo.engine.generate`, the loop that turns steps into text.

Shapes: T ids in one work item, L layers, D d_model, V vocab_size, H query heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from miudo.config import ModelConfig
from miudo.errors import RequestError

__all__ = [
    "Engine",
    "FloatArray",
    "Generator",
    "Message",
    "SamplingSettings",
    "Scores",
    "SeqWork",
    "StepOut",
    "TextEvent",
    "Tokenizer",
    "Want",
]

FloatArray = npt.NDArray[np.float32]


class Want(Flag):
    """What a work item wants back; flags combine."""

    NOTHING = 0
    SAMPLE = auto()
    LAST_LOGITS = auto()
    ALL_LOGITS = auto()
    HIDDEN = auto()
    ATTENTION = auto()


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How the next id is drawn; temperature 0 takes the most probable (ties: lowest id).

    The order is fixed: mask, logit bias, repetition penalty (Keskar et al. 2019),
    temperature, top-k, top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024).
    `seed` and `request` with the position key the random number (`miudo.philox`).
    Raises RequestError for values out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    request: int = 0

    def __post_init__(self) -> None:
        # Logits divided by less than this overflow.
        if self.temperature != 0.0 and not 1e-6 <= self.temperature <= 100.0:
            raise RequestError(
                f"temperature is {self.temperature}, allowed 0 (greedy), or 1e-6 to 100"
            )
        _check_whole("top_k", self.top_k, 1 << 30)
        _check("top_p", self.top_p, 1e-6, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        for token, bias in self.logit_bias:
            _check_whole("logit_bias id", token, 1 << 31)
            _check("logit_bias", bias, -1e4, 1e4)
        _check_whole("seed", self.seed, (1 << 64) - 1)
        _check_whole("request", self.request, (1 << 64) - 1)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise RequestError(f"{name} is {value}, allowed {low} to {high}")


def _check_whole(name: str, value: object, high: int) -> None:
    if type(value) is not int or not 0 <= value <= high:
        raise RequestError(f"{name} is {value!r}, allowed a whole number from 0 to {high}")


_GREEDY = SamplingSettings()


@dataclass(frozen=True, slots=True)
class SeqWork:
    """Ids to take in for one conversation, and what is wanted back.

    `mask` is bool [V], True for ids that may be drawn (a grammar's choice).
    `adapter` names one that the engine has been given; a conversation keeps that of its first step.

    The last `n_drafted` ids are a guess; SAMPLE alone is wanted then. A token is drawn at each of
    their positions in turn and behind the last, until one differs from the guess; ids from there
    on are forgotten. Tokens, and what the conversation then holds, are those of single steps
    (Leviathan et al. 2023, with draws that do not depend on the guess).
    """

    conversation: int
    ids: Sequence[int]
    want: Want = Want.SAMPLE
    sampling: SamplingSettings = _GREEDY
    mask: npt.NDArray[np.bool_] | None = None
    adapter: str | None = None
    n_drafted: int = 0


@dataclass(frozen=True, slots=True)
class StepOut:
    """What one work item gave; fields that were not wanted are empty or None.

    `tokens` are what was drawn: one, or with a draft up to n_drafted + 1, all but the last of
    which are the draft's. `logprobs` are their natural log-probabilities under the unfiltered
    softmax of the raw logits. `logits` is [V] for LAST_LOGITS, [T, V] for ALL_LOGITS. `hidden` is
    [L + 1, T, D]: the residual stream before each block and after the last. `attention` holds per
    layer [H, T, keys].
    """

    conversation: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    logits: FloatArray | None = None
    hidden: FloatArray | None = None
    attention: tuple[FloatArray, ...] | None = None

    @property
    def token(self) -> int | None:
        """The last token that was drawn; None where none was wanted."""
        return self.tokens[-1] if self.tokens else None

    @property
    def logprob(self) -> float | None:
        """That token's log-probability."""
        return self.logprobs[-1] if self.logprobs else None


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of ids[1:] given what precedes each: `logprobs` [T - 1].

    With top_k > 0: `top_ids` and `top_logprobs` are [T - 1, top_k], most probable first, and
    `logsumexp` [T - 1] is that of the raw logits. `argmax` [T - 1]: the most probable ids.
    """

    logprobs: FloatArray
    argmax: npt.NDArray[np.int32]
    top_ids: npt.NDArray[np.int32] | None = None
    top_logprobs: FloatArray | None = None
    logsumexp: FloatArray | None = None


@runtime_checkable
class Engine(Protocol):
    """Runs a decoder in token ids. A conversation is a handle to its cached keys and values.

    All methods raise RequestError for unknown conversations and ids, and too many positions.
    """

    @property
    def config(self) -> ModelConfig:
        """The model that runs."""
        ...

    def open(self) -> int:
        """Returns a new, empty conversation."""
        ...

    def fork(self, conversation: int, length: int) -> int:
        """Returns a new conversation that holds another's first `length` positions.

        Memory is shared until one of them is written where both have it, and answers are those of
        a conversation that took the same ids in itself. The adapter goes with the positions.
        """
        ...

    def close(self, conversation: int) -> None:
        """Frees a conversation's pages."""
        ...

    def length(self, conversation: int) -> int:
        """Returns how many positions the conversation holds."""
        ...

    def truncate(self, conversation: int, length: int) -> None:
        """Forgets all positions from `length` on."""
        ...

    def step(self, batch: Sequence[SeqWork]) -> list[StepOut]:
        """Takes in every item's ids and returns what each wanted, in the batch's order.

        A batch that raises has changed no conversation.
        """
        ...

    def score(self, ids: Sequence[int], *, top_k: int = 0, adapter: str | None = None) -> Scores:
        """Scores `ids` in a conversation of its own, in chunks: never [T, V] at once."""
        ...

    def unembed(self, hidden: FloatArray) -> FloatArray:
        """Returns logits [N, V] of states [N, D] after any layer: final norm and head alone."""
        ...


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class TextEvent:
    """A piece of generated text; the last event carries why generation stopped."""

    text: str
    finish_reason: str | None = None
    usage: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Generator(Protocol):
    """A model that is only text: a remote large model as teacher, judge or route target."""

    def generate(self, messages: Sequence[Message], *, max_tokens: int) -> Iterator[TextEvent]:
        """Yields the answer as it comes. Raises MissingError where it cannot be reached."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. `encode` never makes a special token of what a user typed."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical form: equal for tokenizers that map text alike."""
        ...

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Returns ids, without adding any token of its own."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns text; bytes that are no UTF-8 become U+FFFD, special tokens vanish."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """Returns the exact bytes an id stands for; special tokens give none."""
        ...
