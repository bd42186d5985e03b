"""Rotary position embedding, half-split: pair i with i + head_dim / 2.

For: rotating queries and keys (Su et al. 2021, in the layout of Hugging Face folders).
Not for: learned positions, which are a plain table in the decoder.
Read next: `miudo.decoder.attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miudo.config import LayerConfig

__all__ = ["Rotation", "rotate", "rotation", "rotations"]

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each [T, head_dim / 2], or [B, 1, T, head_dim / 2] where rows differ."""


def rotation(positions: Tensor, head_dim: int, theta: float) -> Rotation:
    """Returns the cosines and sines of `positions` [..., T] in float32.

    Angles are float32 products, as reference implementations have them: more exact ones
    would differ from trained models by more than rounding at long positions.
    """
    powers = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    frequencies = 1.0 / theta ** (powers / head_dim)  # head_dim/2
    angles = positions.float()[..., None] * frequencies  # ... T head_dim/2
    return angles.cos(), angles.sin()


def rotations(positions: Tensor, layers: tuple[LayerConfig, ...]) -> list[Rotation | None]:
    """Returns one rotation a layer; layers of the same shape share theirs."""
    made: dict[tuple[int, float], Rotation] = {}
    chosen: list[Rotation | None] = []
    for layer in layers:
        key = (layer.head_dim, layer.rope_theta)
        if layer.rotary and key not in made:
            made[key] = rotation(positions, *key)
        chosen.append(made[key] if layer.rotary else None)
    return chosen


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Returns x [..., T, head_dim] rotated, in x's dtype."""
    cos, sin = by  # ... T head_dim/2
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
