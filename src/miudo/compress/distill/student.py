"""The student's shape: a smaller model of the teacher's kind.

For: a config with a given share of the teacher's parameters.
Not for: weights taken from the teacher (`miudo.compress.prune`).
Read next: `miudo.compress.distill.lesson`.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

from miudo.compress.method import in_range
from miudo.config import LayerConfig, ModelConfig
from miudo.errors import ConfigError
from miudo.tensors import parameter_count

__all__ = ["scaled"]

_MULTIPLE = 32
_TOLERANCE = 0.25


def scaled(config: ModelConfig, ratio: float) -> ModelConfig:
    """Returns a config with about `ratio` of the non-embedding parameters, and the same kind.

    Depth and width shrink together; vocabulary and positions stay. Widths are multiples of
    32. Embeddings that are scaled by the root of d_model are so again. Raises ConfigError if no
    smaller shape comes within a quarter of what was asked.
    """
    in_range("ratio", ratio, 1e-4, 1.0)
    wanted = ratio * parameter_count(config, embeddings=False)
    shapes = (
        _shape(config, n_layers, d_model)
        for n_layers in range(1, config.n_layers + 1)
        for d_model in range(_MULTIPLE, config.d_model + 1, _MULTIPLE)
    )
    candidates = [c for c in shapes if c is not None]
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


def _shape(config: ModelConfig, n_layers: int, d_model: int) -> ModelConfig | None:
    """Returns the candidate, None if its heads do not come out even or cannot rotate as they do."""
    picked = [config.layers[(i * config.n_layers) // n_layers] for i in range(n_layers)]
    layers = [_layer(layer, Fraction(d_model, config.d_model)) for layer in picked]
    if not all(layers):
        return None
    kept = tuple(layer for layer in layers if layer is not None)
    rooted = math.isclose(config.embed_scale, config.d_model**0.5)
    scale = d_model**0.5 if rooted else config.embed_scale
    try:
        return dataclasses.replace(config, d_model=d_model, layers=kept, embed_scale=scale)
    except ConfigError:  # narrower heads, of which more numbers are rotated than there are
        return None


def _layer(layer: LayerConfig, share: Fraction) -> LayerConfig | None:
    """Fewer heads of the same size where that comes out even, else narrower heads."""
    heads, narrower = layer.n_heads * share, Fraction(1)
    if heads == 1 and layer.n_heads > 1:
        # One head cannot look at two places: two narrower ones can.
        heads, narrower = Fraction(2), Fraction(1, 2)
    elif heads.denominator > 1:
        heads, narrower = Fraction(layer.n_heads), share
    head_dim, v_head_dim = layer.head_dim * narrower, layer.v_head_dim * narrower
    if head_dim.denominator > 1 or v_head_dim.denominator > 1 or head_dim % 2:
        return None
    kv_heads = max(1, int(heads) * layer.n_kv_heads // layer.n_heads)
    while heads % kv_heads:
        kv_heads -= 1
    return dataclasses.replace(
        layer,
        n_heads=int(heads),
        n_kv_heads=kv_heads,
        head_dim=int(head_dim),
        v_head_dim=int(v_head_dim),
        d_ff=layer.d_ff if share == 1 else _rounded(layer.d_ff * share),
    )


def _rounded(width: Fraction) -> int:
    return max(_MULTIPLE, round(width / _MULTIPLE) * _MULTIPLE)
