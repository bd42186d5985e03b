"""How GGUF files say that queries and keys are rotated: keys, and tensors of factors.

For: keys `rope.*` and the tensors that are no weights: rope_freqs, rope_factors_short and _long.
Not for: folders (`miudo.families.rope`) or the frequencies (`miudo.positional`).
Read next: `miudo.families.llama`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from miudo.config import ModelConfig, RopeKind, RopeScaling
from miudo.errors import ModelFileError
from miudo.families.family import Values, plain_float, single
from miudo.families.rope import yarn_factor
from miudo.positional import frequencies

__all__ = [
    "GGUF_ROPE",
    "ROPE_NAMES",
    "ROPE_TENSORS",
    "read_gguf_rope",
    "rope_tensors",
    "write_gguf_rope",
]

GGUF_ROPE = frozenset(
    f"rope.scaling.{name}"
    for name in (
        "type", "factor", "original_context_length", "attn_factor", "yarn_beta_fast",
        "yarn_beta_slow", "finetuned",
    )
)  # fmt: skip
"""Keys of an architecture that `read_gguf_rope` reads beside rope.freq_base, .dimension_count."""

_FREQS, _SHORT, _LONG = (
    f"rope_{name}.weight" for name in ("freqs", "factors_short", "factors_long")
)
ROPE_NAMES = frozenset({_FREQS, _SHORT, _LONG})
"""Tensors that hold no weights."""
ROPE_TENSORS = "rope_tensors"
"""Where a reader of GGUF puts their numbers, among the keys."""

# Beside the factors, which cannot tell them, the numbers that a folder wants.
_OWN = "miudo.rope_"
_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor")
# Those of every published model whose factors alone are in a file.
_PUBLISHED = RopeScaling(RopeKind.LLAMA3, 8192)
_CLOSE = 1e-4
_ROUNDING = 1e-6


def read_gguf_rope(keys: Values, a: str, head_dim: int, *, partial: bool = False) -> dict[str, Any]:
    """Returns rope_theta, rotary_dim, rope_scaling and max_positions of architecture `a`.

    `partial`: the architecture can rotate a part of a head. Raises ModelFileError for kinds
    that are not computed and for factors that disagree.
    """
    width = keys.get(a + "rope.dimension_count", head_dim)
    if width != head_dim and not partial:
        raise ModelFileError(f"{a}rope.dimension_count is {width!r:.20}, not {head_dim}")
    rope: dict[str, Any] = {
        "rope_theta": plain_float(keys.get(a + "rope.freq_base", 10000.0)),
        "rotary_dim": None if width == head_dim else width,
        "max_positions": keys[a + "context_length"],
    }
    original = keys.get(a + "rope.scaling.original_context_length", rope["max_positions"])
    factors = keys.get(ROPE_TENSORS, {})
    scaling: RopeScaling | None
    if factors:
        _refuse_beside(keys, a + "rope.scaling.factor", "the tensors of factors")
    if _FREQS in factors:
        scaling = _from_freqs(keys, factors[_FREQS], original, rope, width)
    elif factors:
        if not {_LONG, _SHORT} <= factors.keys():
            raise ModelFileError(f"only one of {_SHORT} and {_LONG} is there")
        scaling = RopeScaling(
            RopeKind.LONGROPE,
            original,
            attention_factor=plain_float(keys.get(a + "rope.scaling.attn_factor", 1.0)),
            short_factors=factors[_SHORT],
            long_factors=factors[_LONG],
        )
    else:
        scaling = _from_keys(keys, a + "rope.scaling.", original)
    if _FREQS in factors or (not factors and (scaling is None or scaling.kind is RopeKind.LINEAR)):
        _refuse_beside(keys, a + "rope.scaling.attn_factor", "that kind of scaling")
    return {**rope, "rope_scaling": scaling}


def _refuse_beside(keys: Values, key: str, what: str) -> None:
    """Raises ModelFileError for a number that llama.cpp multiplies by whatever the kind."""
    if (number := plain_float(keys.get(key, 1.0))) not in (0.0, 1.0):
        raise ModelFileError(f"{key} is {number} beside {what}, which is not computed")


def _from_keys(keys: Values, at: str, original: int) -> RopeScaling | None:
    kind = keys.get(at + "type", "linear")  # as llama.cpp takes it
    factor = plain_float(keys.get(at + "factor", 1.0)) or 1.0
    if kind == "yarn":
        attention = plain_float(keys.get(at + "attn_factor", 1.0))
        return RopeScaling(
            RopeKind.YARN,
            original,
            factor,
            attention_factor=single(attention * yarn_factor(factor)),
            beta_fast=plain_float(keys.get(at + "yarn_beta_fast", 32.0)),
            beta_slow=plain_float(keys.get(at + "yarn_beta_slow", 1.0)),
        )
    if kind not in ("linear", "none"):
        raise ModelFileError(f"{at}type is {kind!r:.40}, without factors")
    if kind == "none" or factor == 1:
        return None
    return RopeScaling(RopeKind.LINEAR, original, factor)


def _from_freqs(
    keys: Values, factors: tuple[float, ...], original: int, rope: Values, width: int
) -> RopeScaling:
    """What the factors of rope_freqs mean: llama3 by its numbers, else factors as they are."""
    guess = dataclasses.replace(_PUBLISHED, factor=max(factors))
    if _OWN + "factor" in keys:
        numbers: dict[str, Any] = {name: plain_float(keys[_OWN + name]) for name in _NUMBERS}
        guess = RopeScaling(RopeKind.LLAMA3, original, **numbers)
    config = _rotating(width, rope["rope_theta"], guess)
    if len(factors) == width // 2 and np.allclose(_ratios(config), factors, rtol=_CLOSE):
        return guess
    if _OWN + "factor" in keys:
        raise ModelFileError(f"{_FREQS} and {_OWN}factor disagree")
    return RopeScaling(
        RopeKind.LONGROPE, rope["max_positions"], short_factors=factors, long_factors=factors
    )


def _rotating(width: int, theta: float, scaling: RopeScaling | None) -> ModelConfig:
    """The smallest model that rotates so."""
    return ModelConfig.uniform(
        n_layers=1, d_model=width, n_heads=1, d_ff=1, vocab_size=1, max_positions=1,
        rope_theta=theta, rope_scaling=scaling,
    )  # fmt: skip


def _ratios(config: ModelConfig) -> tuple[float, ...]:
    """What the plain frequencies are divided by."""
    layer = next(layer for layer in config.layers if layer.rotary)
    plain = frequencies(_rotating(layer.rotated, layer.rope_theta, None), layer)
    scaled = frequencies(config, layer)
    return tuple(single(a / b) for a, b in zip(plain, scaled, strict=True))


def write_gguf_rope(config: ModelConfig, a: str) -> dict[str, Any]:
    """Returns the keys of architecture `a`, as llama.cpp reads them; see `rope_tensors`."""
    layer = next((layer for layer in config.layers if layer.rotary), config.layers[0])
    keys: dict[str, Any] = {
        a + "context_length": config.max_positions,
        a + "rope.freq_base": float(layer.rope_theta),
        a + "rope.dimension_count": layer.rotary_dim or layer.head_dim,
    }
    s = config.rope_scaling
    if s is None:
        return keys
    keys[a + "rope.scaling.original_context_length"] = s.original_positions
    if s.kind is RopeKind.LLAMA3:  # the factors are all that others read
        return keys | {_OWN + name: float(getattr(s, name)) for name in _NUMBERS}
    attention = s.attention_factor
    keys[a + "rope.scaling.type"] = str(s.kind)
    if s.kind is not RopeKind.LONGROPE:
        keys[a + "rope.scaling.factor"] = float(s.factor)
    if s.kind is RopeKind.YARN:
        keys[a + "rope.scaling.yarn_beta_fast"] = float(s.beta_fast)
        keys[a + "rope.scaling.yarn_beta_slow"] = float(s.beta_slow)
        attention /= yarn_factor(s.factor)  # which they multiply by of themselves
    if not math.isclose(attention, 1.0, rel_tol=_ROUNDING):
        keys[a + "rope.scaling.attn_factor"] = float(attention)
    return keys


def rope_tensors(config: ModelConfig) -> Mapping[str, tuple[float, ...]]:
    """Returns the tensors beside the weights in which a file holds a rotation's factors."""
    s = config.rope_scaling
    if s is None or s.kind not in (RopeKind.LLAMA3, RopeKind.LONGROPE):
        return {}
    if s.kind is RopeKind.LONGROPE:
        return {_LONG: s.long_factors, _SHORT: s.short_factors}
    return {_FREQS: _ratios(config)}
