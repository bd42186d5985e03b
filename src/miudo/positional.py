"""The numbers by which a model knows positions: rotary frequencies and ALiBi slopes.

For: one source of these for the decoder and the engine, which only multiply by them.
Not for: the rotation itself (`miudo.decoder.position`, `native/model/attention.cc`).
Read next: `miudo.decoder.position`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from miudo.config import LayerConfig, ModelConfig, RopeKind, RopeScaling

__all__ = ["alibi_slopes", "attention_factor", "frequencies"]

_Array = npt.NDArray[np.float64]


def frequencies(config: ModelConfig, layer: LayerConfig) -> tuple[float, ...]:
    """Returns radians a position for each rotated pair of `layer`, as float32 values.

    Plain: theta^(-2i / rotated) (Su et al. 2021). Scaled: `RopeScaling`'s kind.
    """
    powers = np.arange(0, layer.rotated, 2, dtype=np.float64) / max(layer.rotated, 1)
    plain = float(layer.rope_theta) ** -powers  # rotated/2
    scaling = config.rope_scaling
    if scaling is None:
        scaled = plain
    elif scaling.kind is RopeKind.LINEAR:  # Chen et al. 2023
        scaled = plain / scaling.factor
    elif scaling.kind is RopeKind.LLAMA3:
        scaled = _llama3(plain, scaling)
    elif scaling.kind is RopeKind.YARN:
        scaled = _yarn(plain, scaling, layer)
    else:  # Ding et al. 2024
        long = config.max_positions > scaling.original_positions
        factors = scaling.long_factors if long else scaling.short_factors
        # As float32, which files and reference implementations hold them in.
        scaled = plain / np.array(factors, dtype=np.float32).astype(np.float64)
    return tuple(float(np.float32(f)) for f in scaled)


def attention_factor(config: ModelConfig) -> float:
    """Returns what cosines and sines are multiplied by."""
    return 1.0 if config.rope_scaling is None else float(config.rope_scaling.attention_factor)


def alibi_slopes(n_heads: int) -> tuple[float, ...]:
    """Returns how much a head's scores lose a position of distance (Press et al. 2022).

    2^(-8 i / p) for the largest power of two p in `n_heads`; further heads take every other
    slope of twice as many.
    """
    power = 1 << (n_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * i / power) for i in range(1, power + 1)]
    slopes += [2.0 ** (-4 * i / power) for i in range(1, 2 * (n_heads - power), 2)]
    return tuple(slopes)


def _llama3(plain: _Array, s: RopeScaling) -> _Array:
    """Long waves are stretched, short ones kept, those between mixed (Llama Team 2024)."""
    turns = s.original_positions * plain / (2 * math.pi)  # in the original context
    keep = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    mixed: _Array = (1 - keep) * plain / s.factor + keep * plain
    return mixed


def _yarn(plain: _Array, s: RopeScaling, layer: LayerConfig) -> _Array:
    """Pairs that turn often are kept, slow ones interpolated, by a ramp (Peng et al. 2023)."""

    def pair(turns: float) -> float:
        wave = s.original_positions / (turns * 2 * math.pi)
        return layer.rotated * math.log(wave) / (2 * math.log(layer.rope_theta))

    low = max(math.floor(pair(s.beta_fast)), 0)
    high = min(math.ceil(pair(s.beta_slow)), layer.rotated - 1)
    ramp = (np.arange(len(plain)) - low) / max(high - low, 0.001)
    slow = np.clip(ramp, 0.0, 1.0)
    mixed: _Array = slow * plain / s.factor + (1 - slow) * plain
    return mixed
