"""A decoder described by plain values: `ModelConfig`.

For: one frozen, hashable description that every room reads. Behaviour follows from these
values alone, never from a model's name.
Not for: files (see `miudo.families`, `miudo.formats`) or PyTorch (see `miudo.decoder`).
Read next: `miudo.tensors`, which derives every tensor from a config.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from miudo.errors import ConfigError
from miudo.limits import LIMITS, Limits

__all__ = [
    "Activation",
    "LayerConfig",
    "Mlp",
    "ModelConfig",
    "Norm",
    "Position",
    "QkNorm",
    "check_config",
]


class Norm(StrEnum):
    """Root-mean-square norm (Zhang and Sennrich 2019) or layer norm (Ba et al. 2016)."""

    RMS = "rms"
    LAYER = "layer"


class Position(StrEnum):
    """Rotary embedding, half-split pairs (Su et al. 2021), or a learned table."""

    ROPE = "rope"
    LEARNED = "learned"


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
    """`head`: RMS over each query and key head, before the rotation (Qwen3)."""

    NONE = "none"
    HEAD = "head"


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What may differ from layer to layer.

    `window` w makes key j visible to query i if i - w < j <= i; None is full attention.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    d_ff: int
    window: int | None = None
    rotary: bool = True
    rope_theta: float = 10000.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A pre-norm transformer decoder. Raises ConfigError for a config that cannot be.

    `bos_id`, `eos_ids` and `pad_id` are facts of the tokenizer that generation needs.
    """

    vocab_size: int
    d_model: int
    max_positions: int
    layers: tuple[LayerConfig, ...]
    norm: Norm = Norm.RMS
    norm_eps: float = 1e-5
    norm_bias: bool = False
    position: Position = Position.ROPE
    mlp: Mlp = Mlp.GATED
    activation: Activation = Activation.SILU
    qk_norm: QkNorm = QkNorm.NONE
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = True
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = field(default=())
    pad_id: int | None = None

    def __post_init__(self) -> None:
        check_config(self, LIMITS)

    @property
    def n_layers(self) -> int:
        """How many blocks the model has."""
        return len(self.layers)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_json` gives back an equal config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the config that `to_json` wrote. Raises ConfigError on unknown keys."""
        try:
            _refuse_unknown(values, cls)
            given = dict(values)
            layers = given.pop("layers")
            for key, enum in _ENUMS.items():
                if key in given:
                    given[key] = enum(given[key])
            given["eos_ids"] = tuple(given.get("eos_ids", ()))
            return cls(layers=tuple(_layer_from_json(v) for v in layers), **given)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"not a model config ({error})", remedy="Compare it with a preset's values"
            ) from error

    @classmethod
    def uniform(  # noqa: PLR0913 - mirrors the fields that one layer has
        cls,
        *,
        n_layers: int,
        d_model: int,
        n_heads: int,
        d_ff: int,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        window: int | None = None,
        rope_theta: float = 10000.0,
        **rest: Any,
    ) -> Self:
        """Returns a config whose layers are all alike; `rest` are fields of ModelConfig."""
        # Checked here because they are computed with before there is a config to check.
        _in_range("d_model", d_model, 1, LIMITS.d_model)
        _in_range("n_heads", n_heads, 1, LIMITS.n_heads)
        _in_range("n_layers", n_layers, 1, LIMITS.n_layers)
        size = d_model // n_heads if head_dim is None else head_dim
        layer = LayerConfig(
            n_heads=n_heads,
            n_kv_heads=n_heads if n_kv_heads is None else n_kv_heads,
            head_dim=size,
            v_head_dim=size,
            d_ff=d_ff,
            window=window,
            rotary=rest.get("position", Position.ROPE) is Position.ROPE,
            rope_theta=rope_theta,
        )
        return cls(d_model=d_model, layers=(layer,) * n_layers, **rest)


_ENUMS: dict[str, type[StrEnum]] = {
    "norm": Norm,
    "position": Position,
    "mlp": Mlp,
    "activation": Activation,
    "qk_norm": QkNorm,
}


def _layer_from_json(values: Mapping[str, Any]) -> LayerConfig:
    _refuse_unknown(values, LayerConfig)
    return LayerConfig(**values)


def _refuse_unknown(values: Mapping[str, Any], kind: type) -> None:
    known = {f.name for f in dataclasses.fields(kind)}
    if extra := sorted(set(values) - known):
        raise ConfigError(
            f"unknown keys {', '.join(extra)}", remedy=f"{kind.__name__} has {sorted(known)}"
        )


def check_config(config: ModelConfig, limits: Limits) -> None:
    """Raises ConfigError, naming field, value and range, if no decoder can have `config`."""
    _in_range("vocab_size", config.vocab_size, 1, limits.vocab_size)
    _in_range("d_model", config.d_model, 1, limits.d_model)
    _in_range("max_positions", config.max_positions, 1, limits.max_positions)
    _is_a("layers", config.layers, tuple)
    _is_a("eos_ids", config.eos_ids, tuple)
    _in_range("n_layers", len(config.layers), 1, limits.n_layers)
    for name, enum in _ENUMS.items():
        _is_a(name, getattr(config, name), enum)
    for name in ("norm_bias", "qkv_bias", "o_bias", "mlp_bias", "tie_embeddings"):
        _is_a(name, getattr(config, name), bool)
    _is_a("norm_eps", config.norm_eps, float)
    if not 0.0 < config.norm_eps < 1.0:
        raise ConfigError(f"norm_eps is {config.norm_eps}, allowed between 0 and 1")
    for i, layer in enumerate(config.layers):
        _check_layer(f"layers[{i}].", layer, limits)
        if layer.rotary != (config.position is Position.ROPE) and layer.rotary:
            raise ConfigError(f"layers[{i}].rotary is set but position is {config.position}")
    for name in ("bos_id", "pad_id"):
        value = getattr(config, name)
        if value is not None:
            _in_range(name, value, 0, config.vocab_size - 1)
    for value in config.eos_ids:
        _in_range("eos_ids", value, 0, config.vocab_size - 1)


def _check_layer(where: str, layer: LayerConfig, limits: Limits) -> None:
    _is_a(where.removesuffix("."), layer, LayerConfig)
    _in_range(where + "n_heads", layer.n_heads, 1, limits.n_heads)
    _in_range(where + "n_kv_heads", layer.n_kv_heads, 1, layer.n_heads)
    _in_range(where + "head_dim", layer.head_dim, 1, limits.head_dim)
    _in_range(where + "v_head_dim", layer.v_head_dim, 1, limits.head_dim)
    _in_range(where + "d_ff", layer.d_ff, 1, limits.d_ff)
    _is_a(where + "rotary", layer.rotary, bool)
    _is_a(where + "rope_theta", layer.rope_theta, float)
    if layer.n_heads % layer.n_kv_heads:
        raise ConfigError(
            f"{where}n_heads {layer.n_heads} is not a multiple of n_kv_heads {layer.n_kv_heads}"
        )
    if layer.rotary and layer.head_dim % 2:
        raise ConfigError(f"{where}head_dim {layer.head_dim} is odd, a rotation needs pairs")
    if layer.window is not None:
        _in_range(where + "window", layer.window, 1, limits.max_positions)
    if not 1.0 <= layer.rope_theta < 1e12:
        raise ConfigError(f"{where}rope_theta is {layer.rope_theta}, allowed 1 to 1e12")


def _in_range(name: str, value: object, low: int, high: int) -> None:
    # bool is an int in Python; `true` in a file must not become the size 1.
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}, allowed a whole number from {low} to {high}")


def _is_a(name: str, value: object, kind: type) -> None:
    # A string is true, and an enum's plain string is not the enum: both would pass silently.
    if not (isinstance(value, kind) or (kind is float and type(value) is int)):
        raise ConfigError(f"{name} is {value!r}, not a {kind.__name__}")
