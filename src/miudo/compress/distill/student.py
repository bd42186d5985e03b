"""The student's shape: a smaller model of the teacher's kind.

For: a config with a given share of the teacher's parameters.
Not for: weights taken from the teacher (`miudo.compress.prune`).
Read next: `miudo.compress.distill.response`.
"""

from __future__ import annotations

import dataclasses

from miudo.compress.method import in_range
from miudo.config import LayerConfig, ModelConfig, Position
from miudo.errors import ConfigError
from miudo.tensors import parameter_count

__all__ = ["scaled"]

_MULTIPLE = 32
_MIN_HEAD_DIM = 16
_TOLERANCE = 0.25


def scaled(config: ModelConfig, ratio: float) -> ModelConfig:
    """Returns a config with about `ratio` of the non-embedding parameters, and the same kind.

    Depth and width shrink together; vocabulary and positions stay. Widths are multiples of
    32. Raises ConfigError if no smaller shape comes within a quarter of what was asked.
    """
    in_range("ratio", ratio, 1e-4, 1.0)
    wanted = ratio * parameter_count(config, embeddings=False)
    candidates = [
        _shape(config, n_layers, d_model)
        for n_layers in range(1, config.n_layers + 1)
        for d_model in range(_MULTIPLE, config.d_model + 1, _MULTIPLE)
    ]
    close = [c for c in candidates if abs(_size(c) / wanted - 1.0) <= _TOLERANCE]
    if not close:
        raise ConfigError(
            f"ratio is {ratio}, and no shape comes near {wanted:,.0f} parameters",
            remedy="Choose a larger ratio, or name a preset",
        )
    return min(close, key=lambda c: _distance(c, config, wanted))


def _size(config: ModelConfig) -> int:
    return parameter_count(config, embeddings=False)


def _distance(candidate: ModelConfig, config: ModelConfig, wanted: float) -> float:
    """How far from the wanted size, and from the teacher's own proportions."""
    size = abs(_size(candidate) / wanted - 1.0)
    width = candidate.d_model / config.d_model
    depth = candidate.n_layers / config.n_layers
    # Width suffers more than depth at this scale: keep depth twice as readily.
    return 4.0 * size + float(abs(depth - width**0.5))


def _shape(config: ModelConfig, n_layers: int, d_model: int) -> ModelConfig:
    share = d_model / config.d_model
    picked = [config.layers[(i * config.n_layers) // n_layers] for i in range(n_layers)]
    return dataclasses.replace(
        config,
        d_model=d_model,
        layers=tuple(_layer(layer, share, config) for layer in picked),
    )


def _layer(layer: LayerConfig, share: float, config: ModelConfig) -> LayerConfig:
    heads = max(1, round(layer.n_heads * share))
    head_dim, v_head_dim = layer.head_dim, layer.v_head_dim
    if heads == 1 and layer.n_heads > 1 and layer.head_dim >= 2 * _MIN_HEAD_DIM:
        # One head cannot look at two places: two narrower ones can.
        heads, head_dim, v_head_dim = 2, head_dim // 2, v_head_dim // 2
    group = layer.n_heads // layer.n_kv_heads
    kv_heads = max(1, heads // group)
    while heads % kv_heads:
        kv_heads -= 1
    if config.position is Position.ROPE:
        head_dim += head_dim % 2
    return dataclasses.replace(
        layer,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        d_ff=max(_MULTIPLE, round(layer.d_ff * share / _MULTIPLE) * _MULTIPLE),
    )
