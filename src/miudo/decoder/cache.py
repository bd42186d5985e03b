"""Keys and values of past positions, for decoding one id at a time.

For: the PyTorch engine and tests of cached against whole forward.
Not for: pages and byte budgets, which the native engine has.
Read next: `miudo.decoder.torch_engine`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miudo.config import ModelConfig

__all__ = ["KVCache"]


class KVCache:
    """Keys [B, K, S, head_dim] and values [B, K, S, v_head_dim] a layer, grown in steps.

    K and both head sizes may differ from layer to layer.
    """

    def __init__(
        self, config: ModelConfig, batch: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        self.length = 0
        self._config = config
        self._capacity = 0
        self._keys = [
            torch.empty(batch, c.n_kv_heads, 0, c.head_dim, device=device) for c in config.layers
        ]  # B K S head_dim
        self._values = [
            torch.empty(batch, c.n_kv_heads, 0, c.v_head_dim, device=device) for c in config.layers
        ]  # B K S v_head_dim

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores T fresh keys and values after `length`; returns all of them, S + T long."""
        end = self.length + keys.shape[2]
        if end > self._capacity:
            self._grow(end)
        self._keys[layer][:, :, self.length : end] = keys
        self._values[layer][:, :, self.length : end] = values
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def fork(self, length: int) -> KVCache:
        """Returns a cache of its own with the first `length` positions of this one."""
        made = KVCache(self._config)
        made.length = made._capacity = length
        made._keys = [keys[:, :, :length].clone() for keys in self._keys]
        made._values = [values[:, :, :length].clone() for values in self._values]
        return made

    def _grow(self, needed: int) -> None:
        self._capacity = min(max(needed, 2 * self._capacity, 64), self._config.max_positions)
        for stored in (self._keys, self._values):
            for i, old in enumerate(stored):
                batch, heads, _, size = old.shape
                grown = old.new_zeros(batch, heads, self._capacity, size)
                grown[:, :, : self.length] = old[:, :, : self.length]
                stored[i] = grown
