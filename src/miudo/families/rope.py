"""How folders say that queries and keys are rotated: plain, stretched, a part of a head.

For: both generations of config.json, `rope_theta` with `rope_scaling` and `rope_parameters`.
Not for: GGUF (`miudo.families.gguf_rope`) or the frequencies (`miudo.positional`).
Read next: `miudo.config.RopeScaling`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from miudo.config import ModelConfig, RopeKind, RopeScaling
from miudo.errors import ModelFileError
from miudo.families.family import Values, hf_number, single

__all__ = ["HF_ROPE", "hf_scaling", "read_rope", "scaling_misfit", "write_rope", "yarn_factor"]

HF_ROPE = frozenset({
    "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
    "max_position_embeddings", "original_max_position_embeddings",
})  # fmt: skip
"""Keys of config.json that `read_rope` reads."""

_KNOWN = frozenset({
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "finetuned",
    "original_max_position_embeddings", "attention_factor", "low_freq_factor",
    "high_freq_factor", "beta_fast", "beta_slow", "short_factor", "long_factor", "mscale",
    "mscale_all_dim", "truncate",
})  # fmt: skip
_WHERE = "config.json: rope_scaling"


def read_rope(
    values: Values,
    head_dim: int,
    *,
    theta: float = 10000.0,
    positions: int = 2048,
    partial: bool = False,
    renamed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Returns rope_theta, rotary_dim, rope_scaling and max_positions for `ModelConfig.uniform`.

    `theta` and `positions` hold where the file is silent; `partial`: the class can rotate a part
    of a head; `renamed` are old names of kinds. Raises ModelFileError for what is not computed.
    """
    stated = _stated(values)
    base = stated.get("rope_theta", values.get("rope_theta"))
    share = stated.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if share not in (None, 1, 1.0) and not partial:
        raise ModelFileError(
            f"partial_rotary_factor is {share!r:.20}, this class rotates whole heads",
            where=_WHERE,
        )
    share = hf_number({"partial_rotary_factor": share}, "partial_rotary_factor", 1.0)
    most = hf_number(values, "max_position_embeddings", positions)
    scaling = hf_scaling(values, stated, most, renamed or {})
    if scaling is not None and scaling.kind is RopeKind.YARN:
        # The key is added by hand to models whose positions are still those of before.
        most = max(most, round(scaling.factor * scaling.original_positions))
    return {
        "rope_theta": float(hf_number({"rope_theta": base}, "rope_theta", theta)),
        "rotary_dim": None if share == 1 else int(head_dim * share),
        "rope_scaling": scaling,
        "max_positions": most,
    }


def _stated(values: Values) -> dict[str, Any]:
    """The old object wins where both are there, as in the reference classes."""
    stated = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(stated, dict):
        raise ModelFileError(f"is {stated!r:.60}, no object", where=_WHERE)
    odd = sorted(k for k, v in stated.items() if v and k not in _KNOWN)
    if odd:
        shown = ", ".join(f"{k} = {stated[k]!r:.60}" for k in odd[:8])
        raise ModelFileError(f"unknown keys: {shown}", where=_WHERE)
    return stated


def hf_scaling(
    values: Values, stated: Values, most: int, renamed: Mapping[str, str]
) -> RopeScaling | None:
    """Returns how `stated`, one object of rope parameters, stretches; None if it does not.

    "dynamic" acts only beyond `most` positions, which no model here goes: it is none.
    """
    named = stated.get("rope_type", stated.get("type")) or "default"
    name = renamed.get(str(named), str(named))
    if name in ("default", "dynamic"):
        return None
    if name not in list(RopeKind):
        known = ", ".join(("default", "dynamic", *RopeKind))
        raise ModelFileError(f"kind {named!r:.60} is unknown", where=_WHERE, remedy=f"Is: {known}")
    kind = RopeKind(name)
    # The outer key wins, as in the reference classes.
    outer = values.get("original_max_position_embeddings")
    within = stated if outer is None or kind is RopeKind.LINEAR else {**stated, **_original(outer)}
    original = hf_number(within, "original_max_position_embeddings", most)
    if kind is RopeKind.LONGROPE:
        return _longrope(stated, most, original)
    factor = float(hf_number(stated, "factor", None if kind is not RopeKind.YARN else 0.0))
    if kind is RopeKind.LINEAR:
        return RopeScaling(kind, original, factor)
    if kind is RopeKind.LLAMA3:
        low, high = (float(hf_number(stated, f"{x}_freq_factor")) for x in ("low", "high"))
        return RopeScaling(kind, original, factor, low_freq_factor=low, high_freq_factor=high)
    return _yarn(stated, most, original, factor)


def _original(positions: Any) -> dict[str, Any]:
    return {"original_max_position_embeddings": positions}


def _yarn(stated: Values, most: int, original: int, factor: float) -> RopeScaling:
    if stated.get("truncate") is False:
        raise ModelFileError("truncate is false, which is not computed", where=_WHERE)
    factor = factor or most / max(original, 1)
    attention = yarn_factor(factor)
    if stated.get("mscale") and stated.get("mscale_all_dim"):
        over, under = (
            yarn_factor(factor, float(hf_number(stated, key)))
            for key in ("mscale", "mscale_all_dim")
        )
        if min(over, under) <= 0:
            raise ModelFileError("mscale or mscale_all_dim turns cosines round", where=_WHERE)
        attention = over / under
    return RopeScaling(
        RopeKind.YARN,
        original,
        factor,
        attention_factor=single(hf_number(stated, "attention_factor", attention)),
        beta_fast=float(hf_number(stated, "beta_fast", 32.0)),
        beta_slow=float(hf_number(stated, "beta_slow", 1.0)),
    )


def yarn_factor(factor: float, mscale: float = 1.0) -> float:
    """Returns the attention factor that Peng et al. 2023 found for a stretch by `factor`."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope_factor(stretch: float, original: int) -> float:
    """Returns the attention factor of Ding et al. 2024 for `stretch` times `original`."""
    if stretch <= 1 or original < 2:
        return 1.0
    return math.sqrt(1 + math.log(stretch) / math.log(original))


def _longrope(stated: Values, most: int, original: int) -> RopeScaling:
    stretch = float(hf_number(stated, "factor", most / max(original, 1)))
    attention = hf_number(stated, "attention_factor", _longrope_factor(stretch, original))
    return RopeScaling(
        RopeKind.LONGROPE,
        original,
        attention_factor=single(attention),
        short_factors=_factors(stated, "short_factor"),
        long_factors=_factors(stated, "long_factor"),
    )


def _factors(stated: Values, key: str) -> tuple[float, ...]:
    given = stated.get(key)
    if not isinstance(given, list):
        raise ModelFileError(f"{key} is {given!r:.60}, no list of numbers", where=_WHERE)
    return tuple(single(hf_number({key: value}, key)) for value in given)


def write_rope(config: ModelConfig, *, bare: bool = False) -> dict[str, Any]:
    """Returns the keys of both generations of config.json for the rotation of `config`.

    `bare`: the old class wants its two lists of factors in `rope_scaling` and nothing more.
    """
    layer = next((layer for layer in config.layers if layer.rotary), config.layers[0])
    numbers = _numbers(config)
    new: dict[str, Any] = {"rope_type": "default", **numbers, "rope_theta": layer.rope_theta}
    keys: dict[str, Any] = {
        "max_position_embeddings": config.max_positions,
        "rope_theta": layer.rope_theta,
    }
    if layer.rotary_dim is not None:
        new["partial_rotary_factor"] = layer.rotary_dim / layer.head_dim
        keys["partial_rotary_factor"] = new["partial_rotary_factor"]
    scaling = config.rope_scaling
    if scaling is not None:
        wanted = ("short_factor", "long_factor", "attention_factor") if bare else tuple(numbers)
        old = {key: numbers[key] for key in wanted if key in numbers}
        keys["rope_scaling"] = {"type": numbers["rope_type"], **old}
        if bare:
            keys["original_max_position_embeddings"] = scaling.original_positions
    return {**keys, "rope_parameters": new}


def _numbers(config: ModelConfig) -> dict[str, Any]:
    """The numbers of its kind, without those that the classes derive to the same value."""
    s, most = config.rope_scaling, config.max_positions
    if s is None:
        return {}
    numbers: dict[str, Any] = {"rope_type": str(s.kind)}
    if s.kind is not RopeKind.LINEAR or s.original_positions != most:
        numbers |= _original(s.original_positions)
    if s.kind is RopeKind.LONGROPE:
        numbers |= {"short_factor": [*s.short_factors], "long_factor": [*s.long_factors]}
        derived = _longrope_factor(most / s.original_positions, s.original_positions)
    else:
        numbers["factor"], derived = s.factor, yarn_factor(s.factor)
    if s.kind is RopeKind.LLAMA3:
        numbers |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
    if s.kind is RopeKind.YARN:
        numbers |= {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow}
    stretched = s.kind in (RopeKind.YARN, RopeKind.LONGROPE)
    if stretched and s.attention_factor != single(derived):
        numbers["attention_factor"] = s.attention_factor
    return numbers


def scaling_misfit(config: ModelConfig, *known: RopeKind) -> str | None:
    """Returns why files that know the `known` kinds cannot say the rotation of `config`."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind in known:
        return None
    return f"its rotation is stretched by {scaling.kind}"
