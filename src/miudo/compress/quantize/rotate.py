"""Rotations folded into weights: the same model, with outliers spread over many channels.

For: a step before rounding to few bits, where some channels are much larger than others (QuaRot,
Ashkboos et al. 2024). Nothing is added to the model: the file runs everywhere.
Not for: rotations that must run online (before the down projection, on keys in the cache).
Read next: `miudo.compress.quantize.plan`.

Shapes: D d_model, H query heads, K key-value heads, v numbers of a head's value.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from miudo.compress.method import check_finite
from miudo.config import Block, Norm, Parallel
from miudo.decoder.decoder import Decoder

__all__ = ["Rotated", "hadamard", "rotate"]


@dataclass(frozen=True, slots=True)
class Rotated:
    """The rotated decoder, and a note on what could be rotated and why not all."""

    decoder: Decoder
    note: str


def rotate(decoder: Decoder, seed: int) -> Rotated:
    """Returns `decoder` rotated by random Hadamard matrices; its logits are the same.

    Values and the output projection are rotated within each key-value head (R2 of QuaRot and
    SpinQuant), always exactly. The residual stream (R1) is rotated where the model allows it: RMS
    norms before each sublayer alone, and a head of its own. The gain of a norm must be folded
    into the matrices that follow, and one that precedes a tied table cannot be. All arithmetic
    is float64. Exact zeros of a pruned matrix are lost. Raises CheckFailedError if a tensor
    holds NaN.
    """
    check_finite(decoder)
    made = copy.deepcopy(decoder).double()
    generator = torch.Generator().manual_seed(seed)
    block: Any
    with torch.no_grad():
        for block, layer in zip(made.layers, decoder.config.layers, strict=True):
            turn = hadamard(layer.v_head_dim, generator)
            _rotate_heads(block.attn, turn, plain=getattr(block.attn, "plain", None))
        why_not = _no_residual(decoder)
        if why_not is None:
            _fold_gains(made)
            _rotate_residual(made, hadamard(decoder.config.d_model, generator))
    note = "rotated: heads' values" + (
        " and the residual stream" if why_not is None else f"; not the residual stream: {why_not}"
    )
    return Rotated(made.float(), note)


def hadamard(size: int, generator: torch.Generator) -> Tensor:
    """Returns a random orthogonal Hadamard matrix [size, size] in float64: diag(+-1) H.

    A size that is no power of two gets blocks of the largest that divides it along the diagonal.
    """
    part = size & -size
    one = torch.ones(1, 1, dtype=torch.float64)
    while len(one) < part:
        one = torch.cat((torch.cat((one, one), 1), torch.cat((one, -one), 1)))
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    turn: Tensor = torch.kron(torch.eye(size // part, dtype=torch.float64), one / part**0.5)
    return signs[:, None] * turn


def _no_residual(decoder: Decoder) -> str | None:
    """Why the residual stream cannot be rotated, None where it can be."""
    c = decoder.config
    if c.norm is not Norm.RMS:
        return "layer norms take a mean, which a rotation changes"
    if c.block is not Block.PRE or c.embed_norm:
        return "a norm's gain lies in the stream itself"
    if c.tie_embeddings and c.norm_weight:
        return "the last norm's gain cannot be folded into a table that embeds too"
    return None


def _rotate_heads(attn: Any, turn: Tensor, plain: int | None) -> None:
    """Rotates each head's values; `plain`: keys that precede them in the latents' matrix."""
    width = len(turn)
    values = attn.v if plain is None else attn.kv_b
    first = 0 if plain is None else plain
    for part in (values.weight, values.bias):
        if part is not None:
            heads = part.view(-1, first + width, *part.shape[1:])  # K v D, or K v
            heads[:, first:] = torch.einsum("vw,kv...->kw...", turn, heads[:, first:])
    out = attn.o.weight  # D H*v
    out.copy_((out.view(len(out), -1, width) @ turn).flatten(1))


def _fold_gains(decoder: Decoder) -> None:
    if not decoder.config.norm_weight:
        return
    shared = decoder.config.parallel is Parallel.ONE_NORM
    block: Any
    for block in decoder.layers:
        before, after = _readers(block)
        _fold(block.attn_norm, [*before, *(after if shared else [])])
        if not shared:
            _fold(block.mlp_norm, after)
    if decoder.head is not None:
        _fold(decoder.norm, [decoder.head])


def _fold(norm: Any, readers: list[nn.Linear]) -> None:
    gain = norm.weight
    for reader in readers:
        reader.weight.mul_(gain)
    gain.fill_(1.0)


def _readers(block: Any) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """Returns the matrices that read the stream: of the attention, of the feed-forward."""
    attention = [getattr(block.attn, n, None) for n in ("q", "k", "v", "q_a", "kv_a")]
    mlp = [block.mlp.gate, block.mlp.up]
    return [m for m in attention if m is not None], [m for m in mlp if m is not None]


def _rotate_residual(decoder: Decoder, turn: Tensor) -> None:
    tables: list[Any] = [decoder.embed, *([] if decoder.position is None else [decoder.position])]
    readers: list[Any] = [] if decoder.head is None else [decoder.head]
    block: Any
    for block in decoder.layers:
        before, after = _readers(block)
        readers += [*before, *after]
        for writer in (block.attn.o, block.mlp.down):
            writer.weight.copy_(turn.T @ writer.weight)
            if writer.bias is not None:
                writer.bias.copy_(turn.T @ writer.bias)
    for module in (*tables, *readers):
        module.weight.copy_(module.weight @ turn)
