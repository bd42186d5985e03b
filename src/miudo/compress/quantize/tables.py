"""How much a token table's errors matter: as what embeds, and as what gives logits.

For: a Gram for a table that has no inputs of its own, or two uses at once.
Not for: matrices, whose inputs say it (`miudo.compress.station`).
Read next: `miudo.compress.quantize.order`.

An error e of a row changes the output's distribution by KL e^T F e / 2, to second order. As a
head a row is multiplied by the hidden state h: summed over the rows F is (1 - sum_v p_v^2) h h^T
a position. As what embeds it is the Fisher information of the embedding, g g^T with the gradient
g of the log-probability of ids drawn from the model itself (Martens 2020). Both are in nats, so
that they add up: a tied table is rounded for both, each as much as it matters.

Shapes: B batch, T positions, D d_model, V vocab_size.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from miudo.compress.station import Gram
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError

__all__ = ["table_gram"]

_POSITIONS = 64
"""Whose logits are there at once."""
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
    for row in rows:
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
        with torch.enable_grad(), _lean(decoder):
            hidden = decoder(row)[0]  # T D
            states = hidden.detach()
            heads = [_head_uses(decoder, some, generator) for some in states.split(_POSITIONS)]
            pulls, spreads = zip(*heads, strict=True)
            (gradient,) = torch.autograd.grad(hidden, embedded, torch.cat(pulls))
    finally:
        handle.remove()
    return gradient[0], states, torch.cat(spreads)


def _head_uses(
    decoder: Decoder, states: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns the gradient of drawn ids' log-probabilities by states [T, D], and 1 - sum p^2."""
    leaf = states.detach().requires_grad_()
    log_p = decoder.logits(leaf).log_softmax(-1)  # T V
    p = log_p.detach().exp()
    drawn = torch.multinomial(p, 1, generator=generator)  # T 1
    spread = 1 - p.square_().sum(-1)
    (gradient,) = torch.autograd.grad(log_p.gather(-1, drawn).sum(), leaf)
    return gradient, spread


@contextlib.contextmanager
def _lean(decoder: Decoder) -> Iterator[None]:
    """While it holds, blocks keep their input alone for a gradient, which weights have none of."""
    learning = [p for p in decoder.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    for block in decoder.layers:
        block.forward = functools.partial(_Again.apply, block.forward)
    try:
        yield
    finally:
        for block in decoder.layers:
            del block.forward  # the class's own shows again
        for parameter in learning:
            parameter.requires_grad_(True)


class _Again(torch.autograd.Function):
    """A block that is computed once more for its gradient.

    PyTorch's own checkpoints import its compiler: 90 MB, more than they would save here.
    """

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
        ctx.run, ctx.rest = run, rest
        ctx.save_for_backward(x)
        return run(x, *rest)

    @staticmethod
    def backward(ctx: Any, *pulls: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (pulled,) = torch.autograd.grad(ctx.run(leaf, *ctx.rest), leaf, pulls)
        return None, pulled, *(None for _ in ctx.rest)


def _kept(out: Tensor, embedded: list[Tensor]) -> Tensor:
    leaf = out.detach().requires_grad_()
    embedded.append(leaf)
    return leaf
