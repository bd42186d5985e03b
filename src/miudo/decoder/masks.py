"""Which keys a query may look at.

For: causal masks, with a sliding window, between cached and fresh positions, and rows in which
several samples lie one after the other.
Not for: the softmax itself (`miudo.decoder.attention`).
Read next: `miudo.decoder.attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["causal_mask", "segment_positions"]


def causal_mask(
    positions: Tensor, n_keys: int, window: int | None, segments: Tensor | None = None
) -> Tensor:
    """Returns bool [T, n_keys], True where the query at `positions` [T] sees the key.

    Key j is visible to query i if i - window < j <= i (no lower bound without a window). With
    `segments` [B, T] also only if both lie in one; the mask is [B, 1, T, T] then.
    """
    keys = torch.arange(n_keys, device=positions.device)  # S
    distance = positions[:, None] - keys[None, :]  # T S
    visible = distance >= 0
    if window is not None:
        visible = visible & (distance < window)
    if segments is not None:
        visible = visible & (segments[:, None, :, None] == segments[:, None, None, :])
    return visible


def segment_positions(segments: Tensor) -> Tensor:
    """Returns int64 [B, T]: how far each position is from the first of its segment [B, T]."""
    places = torch.arange(segments.shape[1], device=segments.device)  # T
    first = torch.ones_like(segments, dtype=torch.bool)
    first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    starts = torch.where(first, places, 0).cummax(dim=1).values  # B T
    return places - starts
