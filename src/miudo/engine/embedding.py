"""Vectors of texts: a decoder's final states, pooled.

For: comparing texts by the cosine of their vectors, as search does.
Not for: models that were trained to embed; a decoder's vectors are what it has.
Read next: `miudo.protocol.Want`.

Shapes: T ids, L layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from miudo.config import ModelConfig, Norm
from miudo.errors import RequestError
from miudo.formats.blocks import to_f32
from miudo.protocol import Engine, FloatArray, SeqWork, Want
from miudo.tensors import Weights

__all__ = ["POOLINGS", "Embedder", "Pooling"]

Pooling = Literal["mean", "last"]
POOLINGS: tuple[Pooling, ...] = ("mean", "last")

_CHUNK = 64
"""Ids taken in at once: of each the engine gives L + 1 states of which one is used."""


class Embedder:
    """Embeds texts by `engine`, whose final norm is among `weights`."""

    def __init__(self, engine: Engine, weights: Weights, *, adapter: str | None = None) -> None:
        self._engine, self._adapter = engine, adapter
        names = ("norm.weight", "norm.bias")
        self._scale, self._shift = (
            to_f32(weights[name]) if name in weights else None for name in names
        )

    def embed(self, ids: Sequence[int], pooling: Pooling = "mean") -> FloatArray:
        """Returns a vector [D] of length 1: of states after the final norm the mean, or the last.

        Raises RequestError for no ids, ids outside the vocabulary, or more than the model has
        positions for.
        """
        total, last = np.zeros(self._engine.config.d_model), None
        conversation = self._engine.open()
        try:
            for at in range(0, len(ids), _CHUNK):
                last = self.states(conversation, ids[at : at + _CHUNK])
                total += last.sum(axis=0, dtype=np.float64)
        finally:
            self._engine.close(conversation)
        if last is None:
            raise RequestError("no ids to embed", remedy="Give at least one")
        vector = total if pooling == "mean" else last[-1].astype(np.float64)
        unit: FloatArray = (vector / max(float(np.linalg.norm(vector)), 1e-30)).astype(np.float32)
        return unit

    def states(self, conversation: int, ids: Sequence[int]) -> FloatArray:
        """Returns states [T, D] after the final norm of `ids`, which the conversation takes in."""
        work = SeqWork(conversation, ids, want=Want.HIDDEN, adapter=self._adapter)
        (out,) = self._engine.step([work])
        if out.hidden is None:
            raise RequestError("the engine returned no states")
        return _normed(self._engine.config, out.hidden[-1], self._scale, self._shift)


def _normed(
    config: ModelConfig, x: FloatArray, scale: FloatArray | None, shift: FloatArray | None
) -> FloatArray:
    """Returns the norm of x [T, D], as `miudo.decoder.norm` computes it."""
    if config.norm is Norm.LAYER:
        x = x - x.mean(axis=-1, keepdims=True)
    size = np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(config.norm_eps))
    normed: FloatArray = x / size
    if scale is not None:
        normed = normed * scale
    return normed if shift is None else normed + shift
