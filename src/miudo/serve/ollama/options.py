"""Ollama's `options`, `keep_alive` and what else its requests have in common.

For: how long, how to draw, when to stop, in this protocol's names and with its defaults.
Not for: prompts and answers (`miudo.serve.ollama.generate`).
Read next: `miudo.serve.fields`.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from dataclasses import dataclass
from typing import Any

from miudo.engine.guides import Penalties
from miudo.protocol import SamplingSettings
from miudo.serve.answering import Ask
from miudo.serve.asking import Drawing
from miudo.serve.fields import FieldError, Fields
from miudo.serve.hosted import Hosted

__all__ = ["Options", "fitted", "take_keep_alive", "take_options"]

_MAX_TOKENS = 1 << 31
_MAX_STOPS = 16
_DURATION = re.compile(r"0|-1|-?(\d{1,9}(\.\d{0,9})?(ns|us|µs|ms|s|m|h)){1,6}")
# What would change an answer and is not there; at these values it changes none.
_HARMLESS = {
    "repeat_last_n": -1, "tfs_z": 1.0, "typical_p": 1.0, "mirostat": 0, "mirostat_tau": None,
    "mirostat_eta": None, "penalize_newline": True, "num_keep": None, "logits_all": False,
    "vocab_only": False, "embedding_only": False, "draft_num_predict": None,
}  # fmt: skip
# How the machine is used is said when the server starts, not by whoever asks.
_MACHINE = (
    "numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "use_mmap", "use_mlock",
    "num_thread",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked about length and chance; `context` bounds prompt and answer together."""

    max_tokens: int | None
    context: int | None
    sampling: SamplingSettings
    penalties: Penalties | None
    stop: tuple[str, ...]

    @property
    def drawing(self) -> Drawing:
        """The same as all protocols have it; `context` is held by `fitted`."""
        return Drawing(
            max_tokens=self.max_tokens,
            n=1,
            sampling=self.sampling,
            penalties=self.penalties,
            stop=self.stop,
            stream=False,
            with_usage=True,
        )


def take_options(fields: Fields) -> Options:
    """Takes `options`; where none is given, Ollama's defaults, but for `repeat_penalty` 1.

    Raises FieldError for one that is unknown, out of range, or not honoured here.
    """
    given = fields.table("options") or Fields({})
    most = given.whole("num_predict", -2, _MAX_TOKENS, -1)
    if most == 0:
        raise given.wrong("num_predict", most, "at least 1, or -1: to the context's end")
    temperature = given.number("temperature", 0.0, 2.0, 0.8)
    seed = given.whole("seed", -(1 << 63), (1 << 63) - 1, secrets.randbits(63))
    penalties = Penalties(
        given.number("presence_penalty", -2.0, 2.0, 0.0),
        given.number("frequency_penalty", -2.0, 2.0, 0.0),
    )
    options = Options(
        max_tokens=most if most > 0 else None,
        context=given.whole("num_ctx", 1, _MAX_TOKENS) if given.has("num_ctx") else None,
        sampling=SamplingSettings(
            temperature=0.0 if temperature < 1e-6 else temperature,
            top_k=given.whole("top_k", 0, 1 << 30, 40),
            top_p=max(given.number("top_p", 0.0, 1.0, 0.9), 1e-6),
            min_p=given.number("min_p", 0.0, 1.0, 0.0),
            repetition_penalty=given.number("repeat_penalty", 0.01, 100.0, 1.0),
            seed=seed % (1 << 64),
        ),
        penalties=penalties if penalties.presence or penalties.frequency else None,
        stop=given.texts("stop", _MAX_STOPS),
    )
    given.refuse({**_HARMLESS, **dict.fromkeys(_MACHINE)})
    given.end()
    return options


def fitted(ask: Ask, options: Options, hosted: Hosted) -> Ask:
    """Returns the ask within `num_ctx`. Raises FieldError with both counts for what does not fit.

    A context larger than the model's is the model's.
    """
    context = hosted.context if options.context is None else options.context
    room = context - len(ask.prompt)
    if context >= hosted.context:
        return ask
    if room < 1 or (options.max_tokens or 1) > room:
        raise FieldError(
            "options.num_ctx",
            f"is {context}, the prompt has {len(ask.prompt)} tokens",
            remedy="Give more, or ask for less",
        )
    return dataclasses.replace(ask, max_tokens=min(ask.max_tokens, room))


def take_keep_alive(fields: Fields) -> bool:
    """Takes `keep_alive`; returns whether the model is to go at once.

    How long a model stays is the server's to say. Raises FieldError for what is no duration.
    """
    value: Any = fields.take("keep_alive")
    if value is None:
        return False
    if type(value) in (int, float):
        return bool(value == 0)
    if isinstance(value, str) and _DURATION.fullmatch(value):
        return not any(digit in "123456789" for digit in value)
    raise fields.wrong("keep_alive", value, "seconds, or a duration such as 5m")
