"""What one forward pass showed of a model: its streams, and what attention makes of them.

For: the two sides that feature and relation terms compare. Queries, keys and attention rows are
computed anew from the stream, for the layers and rows that are asked for alone: the pass itself
runs as it does without them, compiled, fused and checkpointed.
Not for: comparing (`miudo.compress.distill.feature`, `miudo.compress.distill.relation`).
Read next: `miudo.compress.distill.feature`.

Shapes: B batch, T positions, D d_model, H query heads, K key-value heads, b rows looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from miudo.decoder.attention import Attention, Capture
from miudo.decoder.decoder import Decoder
from miudo.decoder.masks import causal_mask, segment_positions
from miudo.decoder.position import rotations

__all__ = ["View", "look"]


@dataclass(frozen=True, slots=True)
class View:
    """A decoder, its final `hidden` [B, T, D], and its residual stream.

    The stream is that before each block and after the last, or empty where nobody looks inside.
    `segments` are those of the data's marks.
    """

    decoder: Decoder
    hidden: Tensor
    stream: tuple[Tensor, ...]
    segments: Tensor | None

    def after(self, layer: int) -> Tensor:
        """Returns the stream [B, T, D] after `layer`, in float32 at least."""
        return _wide(self.stream[layer + 1])

    def attention(self, layer: int) -> Attention:
        """Returns the layer's attention."""
        block: Any = self.decoder.layers[layer]
        found: Attention = block.attn
        return found

    def queries_keys_values(
        self, layer: int, rows: int, *, rotated: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q [b, H, T, head_dim], k [b, K, T, head_dim], v [b, K, T, v_head_dim].

        Of the first `rows` rows (0: all), in float32 at least. Not rotated, q and k say what
        tokens are, whatever their place.
        """
        block: Any = self.decoder.layers[layer]
        attention = self.attention(layer)
        x = self.stream[layer]
        x = x[:rows] if rows else x
        with torch.autocast(x.device.type, enabled=False):
            h = block.attn_norm(x.to(attention.o.weight.dtype))
            turn = None
            if rotated:
                segments = self._segments(rows)
                places = self._positions() if segments is None else segment_positions(segments)
                config = self.decoder.rotating(x.shape[1], cached=False)
                turn = rotations(places if segments is None else places[:, None], config)[layer]
            q, k, v = attention.queries_keys_values(h, turn)
        return _wide(q), _wide(k), _wide(v)

    def repeated(self, layer: int, x: Tensor) -> Tensor:
        """Returns keys or values [b, K, T, ...] as one for each query head [b, H, T, ...]."""
        shape = self.decoder.config.layers[layer]
        return x.repeat_interleave(shape.n_heads // x.shape[1], dim=1)

    def log_attention(self, layer: int, rows: int) -> Tensor:
        """Returns the log of the attention rows [b, H, T, T]; -inf where none may look."""
        attention = self.attention(layer)
        q, k, _ = self.queries_keys_values(layer, rows, rotated=True)
        with torch.autocast(q.device.type, enabled=False):
            k = self.repeated(layer, k)
            segments = self._segments(rows)
            scores = attention.scores(q, k, self._positions(), segments)
            return scores.log_softmax(-1)

    def visible(self, rows: int) -> Tensor:
        """Returns bool [T, T] or [b, 1, T, T]: what is before, in the same sample."""
        length = self.hidden.shape[1]
        return causal_mask(self._positions(), length, None, self._segments(rows))

    def _positions(self) -> Tensor:
        return torch.arange(self.hidden.shape[1], device=self.hidden.device)

    def _segments(self, rows: int) -> Tensor | None:
        return self.segments[:rows] if self.segments is not None and rows else self.segments


def look(decoder: Decoder, inputs: Tensor, segments: Tensor | None, *, inside: bool) -> View:
    """Returns what `decoder` makes of ids [B, T]; its stream too where `inside` is wanted."""
    capture = Capture() if inside else None
    hidden = decoder(inputs, segments=segments, capture=capture)
    return View(decoder, hidden, tuple(capture.hidden) if capture else (), segments)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float64 else x.float()
