"""Normalisation layers, as a config names them.

For: one place that turns `ModelConfig.norm` into a module.
Not for: the norm of queries and keys, which is always RMS (`miudo.decoder.attention`).
Read next: `miudo.decoder.decoder`.
"""

from __future__ import annotations

from torch import nn

from miudo.config import ModelConfig, Norm

__all__ = ["norm"]


def norm(config: ModelConfig) -> nn.Module:
    """Returns a norm over d_model: RMS, or layer norm with or without bias."""
    if config.norm is Norm.RMS:
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.norm_bias)
