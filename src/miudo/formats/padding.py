"""Layers of unequal size made uniform by zeros, for programs that know only uniform ones.

For: pruned models on their way into files of a family: exact, and a little larger.
Not for: where a tensor's numbers lie (`miudo.formats.layout`).
Read next: `miudo.formats.hf`, `miudo.formats.gguf`.

Shapes: K key-value heads, G query heads of each, S numbers of a head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from miudo.config import ModelConfig, Position, QkNorm
from miudo.formats.derived import DerivedTensor
from miudo.tensors import StoredTensor, Weights, tensor_table

__all__ = ["paddings"]

_Bytes = npt.NDArray[np.uint8]
Padded = tuple[ModelConfig, Weights, tuple[str, ...]]


def paddings(config: ModelConfig, weights: Weights) -> Iterator[Padded]:
    """Yields forms of a model, each with its notes, from itself to the most padded one.

    Wider d_ff: the added columns of `down` are zero. More heads: the added columns of `o` are. So
    all forms give the same, and zeros are zeros in every number type. Heads are made as many as
    the layer with most has, then as many as make d_model together, which some families want.
    """
    yield config, weights, ()
    form: Padded = config, weights, ()
    for wider in (_even_widths, _even_heads, _heads_of_d_model):
        found = wider(form[0], form[1])
        if found is not None:
            form = (found[0], found[1], (*form[2], *found[2]))
            yield form


def _even_widths(config: ModelConfig, weights: Weights) -> Padded | None:
    widths = [layer.d_ff for layer in config.layers]
    if len(set(widths)) == 1:
        return None
    blocks = max(tensor.dtype.block for tensor in weights.values())
    widest = -(-max(widths) // blocks) * blocks
    layers = tuple(dataclasses.replace(layer, d_ff=widest) for layer in config.layers)
    wide = dataclasses.replace(config, layers=layers)
    shapes = {spec.name: spec.shape for spec in tensor_table(wide)}
    padded = {name: _padded(tensor, shapes[name]) for name, tensor in weights.items()}
    narrow = sum(width < widest for width in widths)
    return wide, padded, (f"{narrow} layers padded with zeros to d_ff {widest}",)


def _even_heads(config: ModelConfig, weights: Weights) -> Padded | None:
    groups = max(layer.n_kv_heads for layer in config.layers)
    return _with_heads(config, weights, groups)


def _heads_of_d_model(config: ModelConfig, weights: Weights) -> Padded | None:
    if any(c.n_heads != c.n_kv_heads or config.d_model % c.head_dim for c in config.layers):
        return None
    return _with_heads(config, weights, config.d_model // config.layers[0].head_dim)


def _with_heads(config: ModelConfig, weights: Weights, groups: int) -> Padded | None:
    """Every layer with `groups` key-value heads of as many query heads as the most has."""
    size = max(c.n_heads // c.n_kv_heads for c in config.layers)
    short = [c for c in config.layers if (c.n_kv_heads, c.n_heads) != (groups, groups * size)]
    # A slope that follows from the number of heads, a norm over all of them, latents: not exact.
    other = config.position is Position.ALIBI or config.qk_norm is QkNorm.FULL or config.latent
    split = any(
        layer.v_head_dim % weights[f"layers.{i}.attn.o.weight"].dtype.block
        for i, layer in enumerate(config.layers)
    )
    if not short or other or split or any(c.n_kv_heads > groups for c in config.layers):
        return None
    layers, made = [], dict(weights)
    for i, layer in enumerate(config.layers):
        layers.append(dataclasses.replace(layer, n_heads=groups * size, n_kv_heads=groups))
        each = layer.n_heads // layer.n_kv_heads
        for part, had, want in (
            ("q", (layer.n_kv_heads, each), (groups, size)),
            ("k", (layer.n_kv_heads, 1), (groups, 1)),
            ("v", (layer.n_kv_heads, 1), (groups, 1)),
            ("o", (layer.n_kv_heads, each), (groups, size)),
        ):
            for name in (f"layers.{i}.attn.{part}.weight", f"layers.{i}.attn.{part}.bias"):
                if name in made and (part != "o" or name.endswith("weight")):
                    made[name] = _more_heads(made[name], had, want, columns=part == "o")
    config = dataclasses.replace(config, layers=tuple(layers))
    return config, made, (f"{len(short)} layers padded with zeros to {groups * size} heads",)


def _more_heads(
    tensor: StoredTensor, had: tuple[int, int], want: tuple[int, int], *, columns: bool
) -> StoredTensor:
    """Rows (or columns) in `had` K x G heads, with heads of zeros up to `want` K x G."""
    rows = tensor.shape[0] if columns else 1
    size = tensor.dtype.size_bytes(tensor.shape) // (rows * had[0] * had[1])  # bytes of a head
    heads = tensor.shape[-1 if columns else 0] // (had[0] * had[1]) * want[0] * want[1]
    shape = (rows, heads) if columns else (heads, *tensor.shape[1:])

    def grown(narrow: StoredTensor) -> _Bytes:
        wide = np.zeros((rows, *want, size), dtype=np.uint8)
        wide[:, : had[0], : had[1]] = narrow.data.reshape(rows, *had, size)
        return wide.reshape(-1)

    return DerivedTensor(tensor.dtype, shape, grown, tensor)


def _padded(tensor: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    if tensor.shape == shape:
        return tensor
    row, n_rows = tensor.dtype.size_bytes(shape[-1:]), shape[0] if len(shape) > 1 else 1

    def grown(narrow: StoredTensor) -> _Bytes:
        rows = narrow.data.reshape(-1, narrow.dtype.size_bytes(narrow.shape[-1:]))
        wide = np.zeros((n_rows, row), dtype=np.uint8)
        wide[: rows.shape[0], : rows.shape[1]] = rows
        return wide.reshape(-1)

    return DerivedTensor(tensor.dtype, shape, grown, tensor)
