"""Which keys a query may look at.

For: causal masks, with a sliding window, between cached and fresh positions.
Not for: the softmax itself (`miudo.decoder.attention`).
Read next: `miudo.decoder.attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["causal_mask"]


def causal_mask(positions: Tensor, n_keys: int, window: int | None) -> Tensor:
    """Returns bool [T, n_keys], True where the query at `positions` [T] sees the key.

    Key j is visible to query i if i - window < j <= i (no lower bound without a window).
    """
    keys = torch.arange(n_keys, device=positions.device)  # S
    distance = positions[:, None] - keys[None, :]  # T S
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)
