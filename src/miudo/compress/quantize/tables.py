"""How much a token table's errors matter: as what embeds, and as what gives logits.

For: a Gram for a table that has no inputs of its own, or two uses at once.
Not for: matrices, whose inputs say it (`miudo.compress.walk`).
Read next: `miudo.compress.quantize.order`.

An error e of a row changes the output's distribution by KL e^T F e / 2, to second order. As a
head a row is multiplied by the hidden state h: summed over the rows F is (1 - sum_v p_v^2) h h^T
a position. As what embeds it is the Fisher information of the embedding, g g^T with the gradient
g of the log-probability of ids drawn from the model itself (Martens 2020). Both are in nats, so
that they add up: a tied table is rounded for both, each as much as it matters.

Shapes: B batch, T positions, D d_model, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from miudo.compress.walk import Gram
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError

__all__ = ["table_gram"]

_ENOUGH, _PER_DIMENSION = 16_384, 32
"""Tokens that give a Gram of D x D: a backward pass of each is most of a calibration's time."""


def table_gram(decoder: Decoder, batches: Sequence[Tensor], seed: int = 0) -> Gram:
    """Returns the Gram of `decoder`'s token table over ids [B, T]; `seed` draws the ids.

    Of many rows every second, third, ... is taken: 16,384 tokens do, or 32 D. Raises
    CheckFailedError if nothing depends on the table.
    """
    size = decoder.config.d_model
    there = sum(ids.numel() for ids in batches)
    step = max(1, there // max(_ENOUGH, _PER_DIMENSION * size))
    rows = [row for ids in batches for row in ids[:, None]][::step]  # 1 T
    gram = Gram(torch.zeros(size, size, dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    tokens = 0
    for row in rows:  # logits [T, V] of one row at a time
        tokens += row.numel()
        gradient, hidden, spread = _uses(decoder, row, generator)
        gram.add(gradient)
        if decoder.head is None:
            gram.add(hidden * spread.sqrt()[:, None] * decoder.config.logit_scale)
    trace = float(gram.outer.trace())
    if not 0.0 < trace < float("inf"):
        raise CheckFailedError(
            f"its gradients' squares sum to {trace}",
            where="embed.weight",
            remedy="Check that the model is trained and the text is its kind of text",
        )
    gram.tokens = tokens
    return gram


def _uses(
    decoder: Decoder, row: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the embeddings' gradients and the hidden states [T, D], and 1 - sum p^2 [T]."""
    embedded: list[Tensor] = []
    handle = decoder.embed.register_forward_hook(lambda *call: _kept(call[2], embedded))
    try:
        with torch.enable_grad():
            hidden = decoder(row)[0]  # T D
            log_p = decoder.logits(hidden).log_softmax(-1)  # T V
            p = log_p.detach().exp()
            drawn = torch.multinomial(p, 1, generator=generator)  # T 1
            spread = 1 - p.square_().sum(-1)
            (gradient,) = torch.autograd.grad(log_p.gather(-1, drawn).sum(), embedded)
    finally:
        handle.remove()
    return gradient[0], hidden.detach(), spread


def _kept(out: Tensor, embedded: list[Tensor]) -> Tensor:
    leaf = out.detach().requires_grad_()
    embedded.append(leaf)
    return leaf
