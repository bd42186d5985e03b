"""A decoder described by plain values: `ModelConfig`.

For: one frozen, hashable description that every room reads. Behaviour follows from these
values alone, never from a model's name.
Not for: files (see `miudo.families`, `miudo.formats`) or PyTorch (see `miudo.decoder`).
Read next: `miudo.config.parts`; `miudo.tensors`, which derives every tensor from a config.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self, TypeVar

from miudo.config.parts import (
    Activation,
    Block,
    LatentAttention,
    LayerConfig,
    Mlp,
    Norm,
    Parallel,
    Position,
    QkNorm,
    RopeKind,
    RopeScaling,
    check_latent,
    check_layer,
    check_scaling,
    in_range,
    is_a,
    within,
)
from miudo.errors import ConfigError
from miudo.limits import LIMITS, Limits

__all__ = ["ModelConfig", "check_config"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A transformer decoder. Raises ConfigError for a config that cannot be.

    Embeddings are multiplied by `embed_scale`, every sublayer's output by `residual_scale`,
    logits by `logit_scale`. Scores are multiplied by `attn_scale`, head_dim^-0.5 if None; a
    softcap c makes c * tanh(x / c) of scores or logits. `bos_id`, `eos_ids` and `pad_id` are
    facts of the tokenizer that generation needs.
    """

    vocab_size: int
    d_model: int
    max_positions: int
    layers: tuple[LayerConfig, ...]
    norm: Norm = Norm.RMS
    norm_eps: float = 1e-5
    norm_weight: bool = True
    norm_bias: bool = False
    block: Block = Block.PRE
    parallel: Parallel = Parallel.NONE
    embed_norm: bool = False
    position: Position = Position.ROPE
    rope_scaling: RopeScaling | None = None
    mlp: Mlp = Mlp.GATED
    activation: Activation = Activation.SILU
    qk_norm: QkNorm = QkNorm.NONE
    latent: LatentAttention | None = None
    attn_scale: float | None = None
    attn_softcap: float | None = None
    logit_softcap: float | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
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

    def with_context(self, positions: int | None = None) -> Self:
        """Returns the same model for texts of at most `positions`.

        Raises ConfigError beyond what the model was made for. A longrope model of no more
        than its original positions takes its short factors, which serve short texts best: that
        many positions it has unless more are asked for. Other models have all of theirs.
        """
        if positions is None:
            scaling = self.rope_scaling
            stretched = scaling is not None and scaling.kind is RopeKind.LONGROPE
            original = scaling.original_positions if scaling and stretched else self.max_positions
            positions = min(original, self.max_positions)
        in_range("context", positions, 1, self.max_positions)
        if self.position is Position.LEARNED:
            return self  # the table is as long as it is
        return dataclasses.replace(self, max_positions=positions)

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
            if given.get("rope_scaling") is not None:
                given["rope_scaling"] = _part_from_json(given["rope_scaling"], RopeScaling)
            if given.get("latent") is not None:
                given["latent"] = _part_from_json(given["latent"], LatentAttention)
            return cls(layers=tuple(_part_from_json(v, LayerConfig) for v in layers), **given)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
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
        rotary_dim: int | None = None,
        **rest: Any,
    ) -> Self:
        """Returns a config whose layers are all alike; `rest` are fields of ModelConfig."""
        # Checked here because they are computed with before there is a config to check.
        in_range("d_model", d_model, 1, LIMITS.d_model)
        in_range("n_heads", n_heads, 1, LIMITS.n_heads)
        in_range("n_layers", n_layers, 1, LIMITS.n_layers)
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
            rotary_dim=rotary_dim,
        )
        return cls(d_model=d_model, layers=(layer,) * n_layers, **rest)


_ENUMS: dict[str, type[StrEnum]] = {
    "norm": Norm,
    "block": Block,
    "parallel": Parallel,
    "position": Position,
    "mlp": Mlp,
    "activation": Activation,
    "qk_norm": QkNorm,
}
_SWITCHES = (
    "norm_weight",
    "norm_bias",
    "embed_norm",
    "qkv_bias",
    "o_bias",
    "mlp_bias",
    "tie_embeddings",
)
_OPTIONAL_SCALES = ("attn_scale", "attn_softcap", "logit_softcap")
_Part = TypeVar("_Part", LayerConfig, RopeScaling, LatentAttention)


def _part_from_json(values: Mapping[str, Any], kind: type[_Part]) -> _Part:
    _refuse_unknown(values, kind)
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    if kind is RopeScaling:
        given["kind"] = RopeKind(given["kind"])
    return kind(**given)


def _refuse_unknown(values: Mapping[str, Any], kind: type) -> None:
    known = {f.name for f in dataclasses.fields(kind)}
    if extra := sorted(set(values) - known):
        raise ConfigError(
            f"unknown keys {', '.join(extra)}", remedy=f"{kind.__name__} has {sorted(known)}"
        )


def check_config(config: ModelConfig, limits: Limits) -> None:
    """Raises ConfigError, naming field, value and range, if no decoder can have `config`."""
    in_range("vocab_size", config.vocab_size, 1, limits.vocab_size)
    in_range("d_model", config.d_model, 1, limits.d_model)
    in_range("max_positions", config.max_positions, 1, limits.max_positions)
    is_a("layers", config.layers, tuple)
    is_a("eos_ids", config.eos_ids, tuple)
    in_range("n_layers", len(config.layers), 1, limits.n_layers)
    for name, enum in _ENUMS.items():
        is_a(name, getattr(config, name), enum)
    for name in _SWITCHES:
        is_a(name, getattr(config, name), bool)
    within("norm_eps", config.norm_eps, 1e-12, 1.0)
    for name in ("embed_scale", "residual_scale", "logit_scale", *_OPTIONAL_SCALES):
        value = getattr(config, name)
        if value is not None or name not in _OPTIONAL_SCALES:
            within(name, value, 1e-6, 1e6)
    for i, layer in enumerate(config.layers):
        check_layer(f"layers[{i}].", layer, limits)
        if layer.rotary and config.position is not Position.ROPE:
            raise ConfigError(f"layers[{i}].rotary is set but position is {config.position}")
    _check_ids(config)
    if config.rope_scaling is not None:
        check_scaling(config.rope_scaling, config.layers, limits)
    if config.latent is not None:
        check_latent(config.latent, config.layers, limits)
    _check_together(config)


def _check_ids(config: ModelConfig) -> None:
    for name in ("bos_id", "pad_id"):
        value = getattr(config, name)
        if value is not None:
            in_range(name, value, 0, config.vocab_size - 1)
    for value in config.eos_ids:
        in_range("eos_ids", value, 0, config.vocab_size - 1)


def _check_together(config: ModelConfig) -> None:
    """What each field allows alone and the decoder has no meaning for together."""
    if config.norm_bias and not config.norm_weight:
        raise ConfigError("norm_bias is set but norm_weight is not")
    if config.parallel is not Parallel.NONE and config.block is not Block.PRE:
        raise ConfigError(f"parallel is {config.parallel}, block is {config.block}, not pre")
    if config.rope_scaling is not None and config.position is not Position.ROPE:
        raise ConfigError(f"rope_scaling is set but position is {config.position}")
    if config.latent is not None and (config.qkv_bias or config.qk_norm is not QkNorm.NONE):
        raise ConfigError("latent attention has neither qkv_bias nor qk_norm")
