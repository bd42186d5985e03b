"""Normalisation layers, as a config names them.

For: one place that turns `ModelConfig.norm` into a module.
Not for: where a block has its norms (`miudo.decoder.decoder`).
Read next: `miudo.decoder.decoder`.
"""

from __future__ import annotations

from torch import nn

from miudo.config import ModelConfig, Norm

__all__ = ["norm", "qk_norm"]


def norm(config: ModelConfig) -> nn.Module:
    """Returns a norm over d_model: RMS or layer norm, with the weights that the config has."""
    if config.norm is Norm.RMS:
        affine = config.norm_weight
        return nn.RMSNorm(config.d_model, eps=config.norm_eps, elementwise_affine=affine)
    return nn.LayerNorm(
        config.d_model,
        eps=config.norm_eps,
        elementwise_affine=config.norm_weight,
        bias=config.norm_bias,
    )


def qk_norm(config: ModelConfig, width: int) -> nn.Module:
    """Returns the norm of queries or keys over `width`: the model's kind, without bias."""
    if config.norm is Norm.RMS:
        return nn.RMSNorm(width, eps=config.norm_eps)
    return nn.LayerNorm(width, eps=config.norm_eps, bias=False)
