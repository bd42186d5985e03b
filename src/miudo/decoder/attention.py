"""Causal self-attention with grouped keys and values.

For: multi-head, grouped-query and multi-query attention (Vaswani et al. 2017; Ainslie et al.
2023), full or in a sliding window, with keys and values of unequal size.
Not for: the cache's storage (`miudo.decoder.cache`).
Read next: `miudo.decoder.decoder`.

Shapes: B batch, T positions, S keys, D d_model, H query heads, K key-value heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from miudo.config import LayerConfig, ModelConfig, QkNorm
from miudo.decoder.cache import KVCache
from miudo.decoder.masks import causal_mask
from miudo.decoder.position import Rotation, rotate

__all__ = ["Attention", "Capture"]


@dataclass
class Capture:
    """Collects what a forward pass computes on the way, for features, pruning and the page.

    `hidden` gets the residual stream [B, T, D] before each block and after the last;
    `attention`, where asked for, the weights [B, H, T, S] of each layer.
    """

    want_attention: bool = False
    hidden: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)


class Attention(nn.Module):
    """One attention sublayer; x and result are [B, T, D]."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, index: int) -> None:
        super().__init__()
        d, bias = config.d_model, config.qkv_bias
        self.layer, self.index = layer, index
        self.q = nn.Linear(d, layer.n_heads * layer.head_dim, bias=bias)
        self.k = nn.Linear(d, layer.n_kv_heads * layer.head_dim, bias=bias)
        self.v = nn.Linear(d, layer.n_kv_heads * layer.v_head_dim, bias=bias)
        self.o = nn.Linear(layer.n_heads * layer.v_head_dim, d, bias=config.o_bias)
        normed = config.qk_norm is QkNorm.HEAD
        self.q_norm = nn.RMSNorm(layer.head_dim, eps=config.norm_eps) if normed else None
        self.k_norm = nn.RMSNorm(layer.head_dim, eps=config.norm_eps) if normed else None

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        rotation: Rotation | None,
        cache: KVCache | None,
        capture: Capture | None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Returns the sublayer's output for queries at `positions` [T] of the row."""
        c = self.layer
        b, t, _ = x.shape
        q = self.q(x).view(b, t, c.n_heads, c.head_dim)  # B T H head_dim
        k = self.k(x).view(b, t, c.n_kv_heads, c.head_dim)  # B T K head_dim
        v = self.v(x).view(b, t, c.n_kv_heads, c.v_head_dim).transpose(1, 2)  # B K T v_head_dim
        if self.q_norm is not None and self.k_norm is not None:
            # Autocast leaves q and k in bf16, for which a float32 norm has no fast path.
            q, k = self.q_norm(q.float()), self.k_norm(k.float())
        q, k = q.transpose(1, 2), k.transpose(1, 2)  # B H T head_dim, B K T head_dim
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.extend(self.index, k, v)  # B K S head_dim, B K S v_head_dim
        mixed = self._attend(q, k, v, positions, capture, segments)  # B H T v_head_dim
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))  # B T D
        return out

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        positions: Tensor,
        capture: Capture | None,
        segments: Tensor | None,
    ) -> Tensor:
        group = self.layer.n_heads // self.layer.n_kv_heads
        if group > 1:  # each key-value head serves `group` consecutive query heads
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        if capture is not None and capture.want_attention:
            mask = causal_mask(positions, k.shape[2], self.layer.window, segments)
            scores = (q @ k.transpose(-1, -2)) * self.layer.head_dim**-0.5  # B H T S
            weights = scores.float().masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype)
            capture.attention.append(weights)
            mixed: Tensor = weights @ v
            return mixed
        if self.layer.window is None and segments is None and q.shape[2] == k.shape[2]:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mask = causal_mask(positions, k.shape[2], self.layer.window, segments)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
