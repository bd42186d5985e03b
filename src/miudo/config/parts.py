"""The parts of a model's description: its choices, one layer, stretched and latent attention.

For: the enums and frozen values that `miudo.config.ModelConfig` is made of, each with its check.
Not for: the whole (`miudo.config.model`).
Read next: `miudo.config.model`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from miudo.errors import ConfigError
from miudo.limits import Limits

__all__ = [
    "Activation",
    "Block",
    "LatentAttention",
    "LayerConfig",
    "Mlp",
    "Norm",
    "Parallel",
    "Position",
    "QkNorm",
    "RopeKind",
    "RopeScaling",
    "check_latent",
    "check_layer",
    "check_scaling",
    "in_range",
    "is_a",
    "within",
]


class Norm(StrEnum):
    """Root-mean-square norm (Zhang and Sennrich 2019) or layer norm (Ba et al. 2016)."""

    RMS = "rms"
    LAYER = "layer"


class Position(StrEnum):
    """Rotary, half-split pairs (Su et al. 2021), a learned table, ALiBi, or nothing.

    ALiBi (Press et al. 2022) adds to a score a bias that falls with distance, a slope a head.
    """

    ROPE = "rope"
    LEARNED = "learned"
    ALIBI = "alibi"
    NONE = "none"


class Block(StrEnum):
    """Where a sublayer is normed: its input, its output (OLMo 2), or both (Gemma 2)."""

    PRE = "pre"
    POST = "post"
    SANDWICH = "sandwich"


class Parallel(StrEnum):
    """Attention and feed-forward in turn, or both from the block's input.

    There each has its own norm (GPT-NeoX), or they share one (StableLM 2 12B).
    """

    NONE = "none"
    TWO_NORMS = "two_norms"
    ONE_NORM = "one_norm"


class Mlp(StrEnum):
    """`act(gate(x)) * up(x) -> down` (Shazeer 2020), or `act(up(x)) -> down`."""

    GATED = "gated"
    PLAIN = "plain"


class Activation(StrEnum):
    """`gelu` is the exact erf form, `gelu_tanh` the 0.797884 approximation."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    RELU = "relu"


class QkNorm(StrEnum):
    """A norm of the model's kind, without bias, on queries and keys before the rotation.

    `head`: over each head (Qwen3); `full`: over all heads together (OLMo 2).
    """

    NONE = "none"
    HEAD = "head"
    FULL = "full"


class RopeKind(StrEnum):
    """How a model was stretched beyond the positions it was first trained on; see `rope`."""

    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"
    LONGROPE = "longrope"


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Numbers of one `RopeKind`; a kind reads those that its formula has.

    `attention_factor` multiplies cosines and sines. `short_factors` and `long_factors` divide
    the frequencies, one number each: the long set holds for a model whose `max_positions`
    exceed `original_positions`, whatever the length of a text, so that cached keys stay right.
    """

    kind: RopeKind
    original_positions: int
    factor: float = 1.0
    attention_factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Queries, keys and values made from narrow latents (DeepSeek-AI 2024), as MiniCPM3 has it.

    A head holds `head_dim - rope_dim` unrotated numbers, then `rope_dim` rotated ones; a key's
    rotated part is shared by all heads. Without `q_rank` queries come straight from the input.
    The latents' RMS norms have an eps of their own.
    """

    kv_rank: int
    rope_dim: int
    q_rank: int | None = None
    norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What may differ from layer to layer.

    `window` w makes key j visible to query i if i - w < j <= i; None is full attention.
    `rotary_dim` numbers of a head are rotated, the first ones; None rotates all.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    d_ff: int
    window: int | None = None
    rotary: bool = True
    rope_theta: float = 10000.0
    rotary_dim: int | None = None

    @property
    def rotated(self) -> int:
        """How many numbers of a head are rotated."""
        if not self.rotary:
            return 0
        return self.head_dim if self.rotary_dim is None else self.rotary_dim


def check_layer(where: str, layer: LayerConfig, limits: Limits) -> None:
    """Raises ConfigError, naming field, value and range, if no layer can be `layer`."""
    is_a(where.removesuffix("."), layer, LayerConfig)
    in_range(where + "n_heads", layer.n_heads, 1, limits.n_heads)
    in_range(where + "n_kv_heads", layer.n_kv_heads, 1, layer.n_heads)
    in_range(where + "head_dim", layer.head_dim, 1, limits.head_dim)
    in_range(where + "v_head_dim", layer.v_head_dim, 1, limits.head_dim)
    in_range(where + "d_ff", layer.d_ff, 1, limits.d_ff)
    is_a(where + "rotary", layer.rotary, bool)
    within(where + "rope_theta", layer.rope_theta, 1.0, 1e12)
    if layer.rotary_dim is not None:
        in_range(where + "rotary_dim", layer.rotary_dim, 2, layer.head_dim)
    if layer.n_heads % layer.n_kv_heads:
        raise ConfigError(
            f"{where}n_heads {layer.n_heads} is not a multiple of n_kv_heads {layer.n_kv_heads}"
        )
    if layer.rotated % 2:
        name = "head_dim" if layer.rotary_dim is None else "rotary_dim"
        raise ConfigError(f"{where}{name} {layer.rotated} is odd, a rotation needs pairs")
    if layer.window is not None:
        in_range(where + "window", layer.window, 1, limits.max_positions)


def check_scaling(scaling: RopeScaling, layers: tuple[LayerConfig, ...], limits: Limits) -> None:
    """Raises ConfigError for numbers that stretch no rotation of `layers`."""
    is_a("rope_scaling", scaling, RopeScaling)
    is_a("rope_scaling.kind", scaling.kind, RopeKind)
    at = "rope_scaling."
    in_range(at + "original_positions", scaling.original_positions, 1, limits.max_positions)
    within(at + "factor", scaling.factor, 1.0, 1e6)
    within(at + "attention_factor", scaling.attention_factor, 1e-3, 1e3)
    for name in ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
        within(at + name, getattr(scaling, name), 1e-3, 1e6)
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ConfigError(
            f"{at}high_freq_factor {scaling.high_freq_factor} is not above"
            f" low_freq_factor {scaling.low_freq_factor}"
        )
    if scaling.kind is RopeKind.YARN and any(layer.rope_theta <= 1 for layer in layers):
        raise ConfigError("rope_theta is 1, which yarn has no ramp for")
    for name in ("short_factors", "long_factors"):
        factors = getattr(scaling, name)
        is_a(at + name, factors, tuple)
        for value in factors:
            within(at + name, value, 1e-6, 1e6)
        wanted = {layer.rotated // 2 for layer in layers if layer.rotary}
        if scaling.kind is RopeKind.LONGROPE and wanted - {len(factors)}:
            raise ConfigError(
                f"{at}{name} has {len(factors)} numbers, the layers rotate {sorted(wanted)} pairs"
            )


def check_latent(latent: LatentAttention, layers: tuple[LayerConfig, ...], limits: Limits) -> None:
    """Raises ConfigError if `layers` cannot make their queries, keys and values so."""
    is_a("latent", latent, LatentAttention)
    in_range("latent.kv_rank", latent.kv_rank, 1, limits.d_model)
    if latent.q_rank is not None:
        in_range("latent.q_rank", latent.q_rank, 1, limits.d_model)
    within("latent.norm_eps", latent.norm_eps, 1e-12, 1.0)
    for i, layer in enumerate(layers):
        in_range("latent.rope_dim", latent.rope_dim, 2, layer.head_dim)
        if layer.n_kv_heads != layer.n_heads:
            raise ConfigError(
                f"layers[{i}].n_kv_heads is {layer.n_kv_heads}, latent attention has as many keys"
                f" as queries: {layer.n_heads}"
            )
        if layer.rotary and layer.rotated != latent.rope_dim:
            raise ConfigError(
                f"layers[{i}].rotary_dim is {layer.rotary_dim}, latent.rope_dim {latent.rope_dim}"
            )


def in_range(name: str, value: object, low: int, high: int) -> None:
    """Raises ConfigError unless `value` is a whole number from `low` to `high`."""
    # bool is an int in Python; `true` in a file must not become the size 1.
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}, allowed a whole number from {low} to {high}")


def within(name: str, value: object, low: float, high: float) -> None:
    """Raises ConfigError unless `value` is a number from `low` to `high`."""
    is_a(name, value, float)
    if not (isinstance(value, float | int) and math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name} is {value!r}, allowed {low:g} to {high:g}")


def is_a(name: str, value: object, kind: type) -> None:
    """Raises ConfigError for a value of another kind than `kind`."""
    # A string is true, and an enum's plain string is not the enum: both would pass silently.
    if not (isinstance(value, kind) or (kind is float and type(value) is int)):
        raise ConfigError(f"{name} is {value!r}, not a {kind.__name__}")
