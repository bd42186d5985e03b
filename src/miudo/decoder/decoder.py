"""The decoder: one module for every model that a `ModelConfig` can describe.

For: training, distilling, pruning, and being the truth that the native engine must equal.
Not for: sampling text (`miudo.decoder.torch_engine`), files (`miudo.formats`).
Read next: `miudo.decoder.attention`, then `native/model/forward.cc`, the same functions in C++.

Shapes: B batch, T positions, D d_model, V vocab_size. Parameters carry the names of
`miudo.tensors.tensor_table`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from miudo.config import Block as Placing
from miudo.config import ModelConfig, Parallel, Position
from miudo.decoder.attention import Attention, Capture, softcap
from miudo.decoder.cache import KVCache
from miudo.decoder.embedding import table
from miudo.decoder.feedforward import FeedForward
from miudo.decoder.latent import LatentAttention
from miudo.decoder.masks import segment_positions
from miudo.decoder.norm import norm
from miudo.decoder.position import Rotation, rotations
from miudo.errors import RequestError
from miudo.formats.blocks import to_f32
from miudo.tensors import Role, StoredTensor, Weights, check_weights, tensor_table

__all__ = ["Block", "Decoder"]


class Block(nn.Module):
    """One layer: attention and feed-forward, each normed and added to the residual stream."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        before, after = config.block is not Placing.POST, config.block is not Placing.PRE
        shared = config.parallel is Parallel.ONE_NORM
        kind = Attention if config.latent is None else LatentAttention
        self.attn_norm = norm(config) if before else nn.Identity()
        self.attn = kind(config, config.layers[index], index)
        self.attn_post_norm = norm(config) if after else nn.Identity()
        self.mlp_norm = norm(config) if before and not shared else nn.Identity()
        self.mlp = FeedForward(config, config.layers[index])
        self.mlp_post_norm = norm(config) if after else nn.Identity()
        self.parallel, self.scale = config.parallel, config.residual_scale

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        turn: Rotation | None,
        cache: KVCache | None,
        capture: Capture | None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Returns the residual stream [B, T, D] after this layer."""
        h = self.attn_norm(x)
        mixed = self.attn_post_norm(self.attn(h, positions, turn, cache, capture, segments))
        if self.parallel is Parallel.NONE:
            x = torch.add(x, mixed, alpha=self.scale)
            return torch.add(x, self.mlp_post_norm(self.mlp(self.mlp_norm(x))), alpha=self.scale)
        h = h if self.parallel is Parallel.ONE_NORM else self.mlp_norm(x)
        return torch.add(x, mixed + self.mlp(h), alpha=self.scale)


class Decoder(nn.Module):
    """A transformer decoder (Vaswani et al. 2017), as its config describes it.

    `session` is the config for texts of up to `context` positions: cached keys hold only while
    all positions are rotated alike, so a longrope model takes one set of factors for all.
    """

    def __init__(self, config: ModelConfig, *, context: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.session = config.with_context(context)
        self.embed = table(config.vocab_size, config.d_model)
        self.embed_norm = norm(config) if config.embed_norm else nn.Identity()
        learned = config.position is Position.LEARNED
        self.position = table(config.max_positions, config.d_model) if learned else None
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        self.norm = norm(config)
        tied = config.tie_embeddings
        self.head = None if tied else nn.Linear(config.d_model, config.vocab_size, bias=False)
        # A tied head is no module of its own that a hook could be hung on.
        self.head_input: Callable[[Tensor], Tensor] | None = None

    def forward(
        self,
        ids: Tensor,
        *,
        cache: KVCache | None = None,
        capture: Capture | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Returns hidden [B, T, D] after the final norm for ids [B, T]; see `logits`.

        With a cache the ids follow its positions and are added to it. With `segments` [B, T] a
        row holds several samples, one after the other: each counts its own positions from 0 and
        sees itself alone (there is no cache then). Without a cache a row longer than the session
        is rotated as its own length wants. Raises RequestError beyond max_positions.
        """
        start = 0 if cache is None else cache.length
        config = self.rotating(start + ids.shape[1], cached=cache is not None)
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)  # T
        places = positions if segments is None else segment_positions(segments)  # T, or B T
        x = self.embed(ids)  # B T D
        if self.config.embed_scale != 1.0:
            x = x * self.config.embed_scale
        x = self.embed_norm(x)
        if self.position is not None:
            x = x + self.position(places)
        turns = rotations(places if segments is None else places[:, None], config)
        shown = capture if capture is not None and capture.want_attention else None
        for block, turn in zip(self.layers, turns, strict=True):
            if capture is not None:
                capture.hidden.append(x)
            x = block(x, positions, turn, cache, shown, segments)
        if capture is not None:
            capture.hidden.append(x)
        if cache is not None:
            cache.length += ids.shape[1]
        out: Tensor = self.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits [..., V] for hidden [..., D]; a tied head is the token table."""
        if self.head is None:
            rounded = hidden if self.head_input is None else self.head_input(hidden)
            out = F.linear(rounded, self.embed.weight)
        else:
            out = self.head(hidden)
        if self.config.logit_scale != 1.0:
            out = out * self.config.logit_scale
        return softcap(out, self.config.logit_softcap)

    def initialise(self, seed: int) -> None:
        """Fills every parameter from `seed`, in the order of the tensor table.

        Matrices are normal with half the deviation that keeps variance (Radford et al. 2019
        at any width); those that write to the residual stream are smaller by
        sqrt(2 n_layers). Tables have deviation 0.02, norms are 1, biases 0.
        """
        generator = torch.Generator().manual_seed(seed)
        parameters = dict(self.named_parameters())
        with torch.no_grad():
            for spec in tensor_table(self.config):
                value = parameters[spec.name]
                if spec.role is Role.BIAS or spec.name.endswith(".bias"):
                    value.zero_()
                elif spec.role is Role.NORM:
                    value.fill_(1.0)
                elif spec.role in (Role.EMBED, Role.POSITION, Role.HEAD):
                    value.normal_(0.0, 0.02, generator=generator)
                else:
                    writes = spec.name.endswith((".o.weight", ".down.weight"))
                    scale = 0.5 / (2 * self.config.n_layers) ** 0.5 if writes else 0.5
                    value.normal_(0.0, scale * spec.shape[1] ** -0.5, generator=generator)

    @classmethod
    def from_weights(
        cls, config: ModelConfig, weights: Weights, *, context: int | None = None
    ) -> Self:
        """Returns a float32 decoder holding `weights`, dequantised.

        Raises ConfigError for a context beyond the model's, ModelFileError listing tensors that
        are missing, extra or of another shape.
        """
        check_weights(config, weights)
        with torch.device("meta"):  # sizes only: the values come from the file
            decoder = cls(config, context=context)
        state = {name: torch.from_numpy(np.array(to_f32(t))) for name, t in weights.items()}
        decoder.load_state_dict(state, assign=True)
        return decoder.requires_grad_(True)

    def tensors(self) -> Iterator[tuple[str, StoredTensor]]:
        """Yields names and F32 tensors in the tensor table's order, each copied as it comes."""
        parameters = dict(self.named_parameters())
        for name in (spec.name for spec in tensor_table(self.config)):
            value = parameters[name].detach().to("cpu", torch.float32, copy=True)
            yield name, StoredTensor.from_f32(value.numpy())

    def to_weights(self) -> dict[str, StoredTensor]:
        """Returns the parameters as F32 tensors in the tensor table's order, copied."""
        return dict(self.tensors())

    def rotating(self, end: int, *, cached: bool) -> ModelConfig:
        """Returns the config that rotates `end` positions. Raises RequestError beyond the most."""
        longer = end > self.session.max_positions and not cached
        config = self.config if longer else self.session
        if end > config.max_positions:
            raise RequestError(
                f"{end} positions, the model has {config.max_positions}", remedy="Shorten the text"
            )
        return config
