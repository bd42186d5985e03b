"""Fields that chat and completions have in common: how long, how to draw, when to stop.

For: one meaning of these fields, one set of limits.
Not for: prompts and answers (`miudo.serve.openai.chat`, `miudo.serve.openai.completions`).
Read next: `miudo.serve.fields`.
"""

from __future__ import annotations

import secrets

from miudo.engine.guides import Penalties
from miudo.protocol import SamplingSettings
from miudo.serve.asking import Drawing
from miudo.serve.fields import FieldError, Fields

__all__ = ["MAX_CHOICES", "MAX_STOPS", "MAX_TOP", "take_drawing"]

MAX_CHOICES = 4
MAX_STOPS = 4
MAX_TOP = 20
_MAX_TOKENS = 1 << 31
_MAX_BIASES = 1024


def take_drawing(fields: Fields, *, length: tuple[str, ...], vocab_size: int) -> Drawing:
    """Takes the common fields; `length` are the names under which max_tokens may come.

    Without a seed each request draws its own. Raises FieldError for a value out of range.
    """
    max_tokens = None
    for name in length:
        value = fields.take(name)
        if value is not None:
            max_tokens = Fields({name: value}).whole(name, 1, _MAX_TOKENS)
    stream = fields.flag("stream")
    return Drawing(
        max_tokens=max_tokens,
        n=fields.whole("n", 1, MAX_CHOICES, 1),
        sampling=_sampling(fields, vocab_size),
        penalties=_penalties(fields),
        stop=fields.texts("stop", MAX_STOPS),
        stream=stream,
        with_usage=_with_usage(fields, stream=stream),
    )


def _sampling(fields: Fields, vocab_size: int) -> SamplingSettings:
    temperature = fields.number("temperature", 0.0, 2.0, 1.0)
    seed = fields.whole("seed", -(1 << 63), (1 << 63) - 1, secrets.randbits(63))
    return SamplingSettings(
        temperature=0.0 if temperature < 1e-6 else temperature,
        top_k=fields.whole("top_k", 0, 1 << 30, 0),
        top_p=max(fields.number("top_p", 0.0, 1.0, 1.0), 1e-6),
        min_p=fields.number("min_p", 0.0, 1.0, 0.0),
        repetition_penalty=fields.number("repetition_penalty", 0.01, 100.0, 1.0),
        logit_bias=_biases(fields, vocab_size),
        seed=seed % (1 << 64),
    )


def _biases(fields: Fields, vocab_size: int) -> tuple[tuple[int, float], ...]:
    given = fields.take("logit_bias")
    if given is None:
        return ()
    name = fields.name("logit_bias")
    if not isinstance(given, dict) or len(given) > _MAX_BIASES:
        raise FieldError(name, f"is no object of up to {_MAX_BIASES} ids")
    biases = []
    for token, bias in given.items():
        known = token.isascii() and token.isdigit() and len(token) < 10
        if not known or int(token) >= vocab_size:
            raise FieldError(
                name, f"has the key {token!r:.50}", remedy=f"Give ids from 0 to {vocab_size - 1}"
            )
        value = Fields({token: bias}, name).number(token, -100.0, 100.0)
        # 100 bans or forces in this protocol, whatever the logits are.
        biases.append((int(token), value * 100.0 if abs(value) == 100.0 else value))
    return tuple(biases)


def _penalties(fields: Fields) -> Penalties | None:
    penalties = Penalties(
        fields.number("presence_penalty", -2.0, 2.0, 0.0),
        fields.number("frequency_penalty", -2.0, 2.0, 0.0),
    )
    return penalties if penalties.presence or penalties.frequency else None


def _with_usage(fields: Fields, *, stream: bool) -> bool:
    options = fields.table("stream_options")
    if options is None:
        return False
    if not stream:
        raise FieldError(fields.name("stream_options"), "is given without stream")
    wanted = options.flag("include_usage")
    options.refuse({"include_obfuscation": False})
    options.end()
    return wanted
