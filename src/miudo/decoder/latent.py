"""Attention whose queries, keys and values are made from narrow latents.

For: multi-head latent attention (DeepSeek-AI 2024), expanded to plain keys and values, so that
cache and scores are those of all other models.
Not for: caching the latents themselves.
Read next: `miudo.decoder.attention`.

Shapes: B batch, T positions, H heads; a head is N unrotated numbers, then R rotated ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miudo.config import ModelConfig
from miudo.decoder.attention import Attention
from miudo.decoder.position import Rotation, rotate

__all__ = ["LatentAttention"]


class LatentAttention(Attention):
    """Differs from `Attention` in how queries, keys and values come about."""

    def build(self, config: ModelConfig) -> None:
        """Makes the narrow and the wide half of each projection, and the norm between."""
        c, d, latent = self.layer, config.d_model, config.latent
        assert latent is not None  # noqa: S101 - who builds this has looked
        queries, self.rank = c.n_heads * c.head_dim, latent.kv_rank
        self.plain = c.head_dim - latent.rope_dim
        self.narrow_queries = latent.q_rank is not None
        if latent.q_rank is None:
            self.q = nn.Linear(d, queries, bias=False)
        else:
            self.q_a = nn.Linear(d, latent.q_rank, bias=False)
            self.q_a_norm = nn.RMSNorm(latent.q_rank, eps=latent.norm_eps)
            self.q_b = nn.Linear(latent.q_rank, queries, bias=False)
        self.kv_a = nn.Linear(d, latent.kv_rank + latent.rope_dim, bias=False)
        self.kv_a_norm = nn.RMSNorm(latent.kv_rank, eps=latent.norm_eps)
        self.kv_b = nn.Linear(latent.kv_rank, c.n_heads * (self.plain + c.v_head_dim), bias=False)

    def queries_keys_values(
        self, x: Tensor, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q, k [B, H, T, head_dim] and v [B, H, T, v_head_dim]."""
        c = self.layer
        b, t, _ = x.shape
        q = self.q_b(self.q_a_norm(self.q_a(x).float())) if self.narrow_queries else self.q(x)
        q = q.view(b, t, c.n_heads, c.head_dim).transpose(1, 2)  # B H T N+R
        latent, turned = self.kv_a(x).split((self.rank, c.head_dim - self.plain), dim=-1)
        wide = self.kv_b(self.kv_a_norm(latent.float()))  # B T H*(N+v)
        wide = wide.view(b, t, c.n_heads, self.plain + c.v_head_dim).transpose(1, 2)
        k, v = wide.split((self.plain, c.v_head_dim), dim=-1)  # B H T N, B H T v
        turned = turned[:, None]  # B 1 T R
        if rotation is not None:
            tail = rotate(q[..., self.plain :], rotation)
            q = torch.cat((q[..., : self.plain], tail), dim=-1)
            turned = rotate(turned, rotation)
        k = torch.cat((k, turned.expand(-1, c.n_heads, -1, -1)), dim=-1)  # B H T N+R
        return q, k, v
