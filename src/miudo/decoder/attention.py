"""Causal self-attention with grouped keys and values.

For: multi-head, grouped-query and multi-query attention (Vaswani et al. 2017; Ainslie et al.
2023), full or in a sliding window, with keys and values of unequal size.
Not for: the cache's storage (`miudo.decoder.cache`), keys and values from latents
(`miudo.decoder.latent`).
Read next: `miudo.decoder.decoder`.

Shapes: B batch, T positions, S keys, D d_model, H query heads, K key-value heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from miudo.config import LayerConfig, ModelConfig, Position, QkNorm
from miudo.decoder.cache import KVCache
from miudo.decoder.masks import causal_mask
from miudo.decoder.norm import qk_norm
from miudo.decoder.position import Rotation, alibi_bias, rotate

__all__ = ["Attention", "Capture", "softcap"]


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
        self.layer, self.index, self.cap = layer, index, config.attn_softcap
        self.alibi = config.position is Position.ALIBI
        self.scale = layer.head_dim**-0.5 if config.attn_scale is None else config.attn_scale
        self.build(config)
        self.o = nn.Linear(layer.n_heads * layer.v_head_dim, config.d_model, bias=config.o_bias)

    def build(self, config: ModelConfig) -> None:
        """Makes what `queries_keys_values` needs."""
        c, d, bias = self.layer, config.d_model, config.qkv_bias
        queries, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        self.q = nn.Linear(d, queries, bias=bias)
        self.k = nn.Linear(d, keys, bias=bias)
        self.v = nn.Linear(d, c.n_kv_heads * c.v_head_dim, bias=bias)
        self.whole = config.qk_norm is QkNorm.FULL
        normed = config.qk_norm is not QkNorm.NONE
        self.q_norm = qk_norm(config, queries if self.whole else c.head_dim) if normed else None
        self.k_norm = qk_norm(config, keys if self.whole else c.head_dim) if normed else None

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
        q, k, v = self.queries_keys_values(x, rotation)
        if cache is not None:
            k, v = cache.extend(self.index, k, v)  # B K S head_dim, B K S v_head_dim
        mixed = self._attend(q, k, v, positions, capture, segments)  # B H T v_head_dim
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))  # B T D
        return out

    def queries_keys_values(
        self, x: Tensor, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q [B, H, T, head_dim], k [B, K, T, head_dim] and v [B, K, T, v_head_dim]."""
        c = self.layer
        b, t, _ = x.shape
        q, k, v = self.q(x), self.k(x), self.v(x)
        if not self.whole:
            q, k = q.view(b, t, c.n_heads, c.head_dim), k.view(b, t, c.n_kv_heads, c.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            # Autocast leaves q and k in bf16, for which a float32 norm has no fast path.
            q, k = self.q_norm(q.float()), self.k_norm(k.float())
        q = q.view(b, t, c.n_heads, c.head_dim).transpose(1, 2)
        k = k.view(b, t, c.n_kv_heads, c.head_dim).transpose(1, 2)
        v = v.view(b, t, c.n_kv_heads, c.v_head_dim).transpose(1, 2)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q, k, v

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
        shown = capture is not None and capture.want_attention
        whole = self.layer.window is None and segments is None and q.shape[2] == k.shape[2]
        if whole and not (shown or self.alibi or self.cap):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        if not (shown or self.cap):
            mask = self._visible(positions, k.shape[2], segments)
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask.to(q.dtype) if self.alibi else mask, scale=self.scale
            )
        weights = self.scores(q, k, positions, segments).softmax(-1).to(v.dtype)
        if capture is not None and shown:
            capture.attention.append(weights)
        mixed: Tensor = weights @ v
        return mixed

    def scores(self, q: Tensor, k: Tensor, positions: Tensor, segments: Tensor | None) -> Tensor:
        """Returns float32 scores [B, H, T, S], -inf where none may look; k is one a query head."""
        mask = self._visible(positions, k.shape[2], segments)
        scores = softcap((q @ k.transpose(-1, -2)).float() * self.scale, self.cap)  # B H T S
        return scores + mask if self.alibi else scores.masked_fill(~mask, float("-inf"))

    def _visible(self, positions: Tensor, n_keys: int, segments: Tensor | None) -> Tensor:
        """Bool [T, S] or [B, 1, T, S]; with ALiBi its bias instead, for H heads."""
        mask = causal_mask(positions, n_keys, self.layer.window, segments)
        if self.alibi:
            bias = alibi_bias(positions, n_keys, self.layer.n_heads)
            mask = torch.where(mask, bias, float("-inf"))  # H T S, or B H T S
        return mask


def softcap(x: Tensor, cap: float | None) -> Tensor:
    """Returns cap * tanh(x / cap), x itself without a cap (Gemma Team 2024)."""
    return x if cap is None else cap * torch.tanh(x / cap)
