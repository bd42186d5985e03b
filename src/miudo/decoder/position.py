"""Rotary position embedding, half-split: pair i with i + half of what is rotated; and ALiBi.

For: rotating queries and keys (Su et al. 2021, in the layout of Hugging Face folders), and the
bias that stands for position in ALiBi models (Press et al. 2022).
Not for: learned positions, which are a plain table in the decoder.
Read next: `miudo.positional`, `miudo.decoder.attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miudo.config import ModelConfig
from miudo.positional import alibi_slopes, attention_factor, frequencies

__all__ = ["Rotation", "alibi_bias", "rotate", "rotation", "rotations"]

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each [T, rotated / 2], or [B, 1, T, rotated / 2] where rows differ."""


def rotation(positions: Tensor, turns: tuple[float, ...], factor: float) -> Rotation:
    """Returns the cosines and sines of `positions` [..., T], times `factor`, in float32.

    Angles are float32 products, as reference implementations have them: more exact ones
    would differ from trained models by more than rounding at long positions.
    """
    each = torch.tensor(turns, device=positions.device, dtype=torch.float32)  # rotated/2
    angles = positions.float()[..., None] * each  # ... T rotated/2
    cos, sin = angles.cos(), angles.sin()
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)


def rotations(positions: Tensor, config: ModelConfig) -> list[Rotation | None]:
    """Returns one rotation a layer; layers of the same frequencies share theirs."""
    factor = attention_factor(config)
    made: dict[tuple[int, float], Rotation] = {}
    chosen: list[Rotation | None] = []
    for layer in config.layers:
        key = (layer.rotated, layer.rope_theta)
        if layer.rotary and key not in made:
            made[key] = rotation(positions, frequencies(config, layer), factor)
        chosen.append(made[key] if layer.rotary else None)
    return chosen


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Returns x [..., T, head_dim] with its first numbers rotated, in x's dtype."""
    cos, sin = by  # ... T rotated/2
    half = cos.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
    return turned if x.shape[-1] == 2 * half else torch.cat((turned, x[..., 2 * half :]), dim=-1)


def alibi_bias(positions: Tensor, n_keys: int, n_heads: int) -> Tensor:
    """Returns float32 [H, T, S]: each head's slope times minus the distance to the key."""
    slopes = torch.tensor(alibi_slopes(n_heads), device=positions.device)  # H
    keys = torch.arange(n_keys, device=positions.device)
    return slopes[:, None, None] * (keys[None, :] - positions[:, None]).float()
