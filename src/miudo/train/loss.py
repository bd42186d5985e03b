"""What is minimised: `Loss`, and cross-entropy that never holds all logits.

For: the next-token loss of pretraining, fine-tuning and held-out evaluation.
Not for: a teacher's part (`miudo.compress.distill.response`, another `Loss`).
Read next: `miudo.train.loop`.

Shapes: B batch, T positions, N = B T, n positions of a chunk, D d_model, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from miudo.config import ModelConfig
from miudo.decoder.attention import softcap
from miudo.decoder.decoder import Decoder

__all__ = [
    "ChunkGradient",
    "Compilable",
    "Learning",
    "Loss",
    "Marks",
    "Scheduled",
    "chunk_gradient",
    "chunk_rows",
    "compiled",
    "cross_entropy",
    "mean_loss",
    "through_head",
]


@dataclass(frozen=True, slots=True)
class Marks:
    """What a batch of samples has beside its ids; a batch of running text has none.

    `counted` bool [B, T]: whether the loss counts the target at t (the id at t + 1).
    `segments` int [B, T]: which sample the id at t belongs to; see `Decoder.forward`.
    """

    counted: Tensor
    segments: Tensor


class Loss(Protocol):
    """(decoder, ids [B, T + 1], marks) -> the mean over counted tokens, in nats, and its parts.

    It is called without `marks` where the data has none: every token counts then. One that
    cannot take marks serves running text alone.
    """

    def __call__(
        self, decoder: Decoder, ids: Tensor, marks: Marks | None = None, /
    ) -> tuple[Tensor, dict[str, float]]:
        """Returns the mean and the parts that are shown."""
        ...


@runtime_checkable
class Compilable(Loss, Protocol):
    """A loss that knows how to compile its own inner pass."""

    def compiled(self) -> Loss:
        """Returns the same loss, compiled; called at every step, so the result is kept."""
        ...


@runtime_checkable
class Scheduled(Loss, Protocol):
    """A loss that is not the same from first step to last."""

    def at(self, step: int, steps: int, batch: int) -> Loss:
        """Returns the loss of `step` (from 0) of `steps`: a function of the arguments alone.

        `batch` counts batches over the whole run; a step takes `accumulate` of them.
        """
        ...


@runtime_checkable
class Learning(Loss, Protocol):
    """A loss with parameters of its own, trained beside the decoder and forgotten after."""

    @property
    def learned(self) -> nn.Module:
        """The module whose parameters are trained; its buffers are saved beside them."""
        ...


ChunkGradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_CHUNK_LOGITS, _CHUNK_ROWS = 1 << 24, 512
"""Logits alive at a time, and rows: enough for a fast product, few enough for the caches."""
_GPU_LOGITS = 1 << 27
"""On a GPU a chunk is what memory bears (512 MB of float32): each costs a dozen launches."""


def cross_entropy(
    decoder: Decoder, ids: Tensor, marks: Marks | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Returns the mean next-token cross-entropy of ids [B, T + 1] in nats, in float32.

    With marks the mean is over the counted targets, of which there must be one.
    """
    return _cross_entropy(decoder, ids, marks, compile_chunks=False)


def compiled(loss: Loss) -> Loss:
    """Returns `loss` with its inner pass compiled where that is known; else `loss` itself."""
    if isinstance(loss, Compilable):
        return loss.compiled()
    if loss is not cross_entropy:
        return loss
    return _compiled_cross_entropy


def mean_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    gradient: ChunkGradient | None = None,
    chunk_logits: int = _CHUNK_LOGITS,
) -> Tensor:
    """Returns the mean cross-entropy of hidden [N, D] through weight [V, D] to targets [N].

    Products run in the autocast type where autocast is on. Logits and their gradient exist
    for one chunk at a time: the gradient is made in the forward pass, as Liger Kernel does
    (Hsu et al. 2024), since it needs nothing from above but a factor.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    on_gpu = kind != "cpu"
    rows = max(1, _GPU_LOGITS // len(weight)) if on_gpu else chunk_rows(len(weight), chunk_logits)
    with torch.autocast(kind, enabled=False):
        loss: Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
            hidden, weight, targets, rows, gradient or chunk_gradient, torch.is_grad_enabled()
        )
    return loss


def chunk_rows(vocab_size: int, chunk_logits: int = _CHUNK_LOGITS) -> int:
    """Returns how many positions have their logits alive at a time."""
    return max(1, min(_CHUNK_ROWS, chunk_logits // vocab_size))


def chunk_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the summed loss of logits [n, V] to targets [n], and its gradient [n, V].

    A function of plain tensor operations, so that torch.compile makes one pass of it.
    """
    at = targets[:, None]  # n 1
    logprobs = F.log_softmax(logits.float(), -1)  # n V
    hits = logprobs.gather(1, at)  # n 1
    # In place: a pass over [n, V] that is not made, and memory, show in the whole step.
    gradient = logprobs.exp_().scatter_add_(1, at, torch.full_like(hits, -1.0))
    return -hits.sum(), gradient.to(logits.dtype)


def through_head(config: ModelConfig, gradient: ChunkGradient) -> ChunkGradient:
    """Returns `gradient` for products of the bare head, which a config may scale and cap.

    Without this a model with `logit_scale` or `logit_softcap` would learn other logits than
    those it gives.
    """
    scale, cap = config.logit_scale, config.logit_softcap
    if scale == 1.0 and cap is None:
        return gradient

    def run(products: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = softcap(products * scale, cap)  # n V
        loss, slope = gradient(logits, targets)
        if cap is not None:
            slope = slope * (1.0 - (logits / cap) ** 2)  # of cap * tanh(x / cap)
        return loss, slope * scale

    return run


@cache
def _compiled_gradient(dynamic: bool) -> ChunkGradient:
    return torch.compile(chunk_gradient, dynamic=dynamic)


def _compiled_cross_entropy(
    decoder: Decoder, ids: Tensor, marks: Marks | None = None
) -> tuple[Tensor, dict[str, float]]:
    return _cross_entropy(decoder, ids, marks, compile_chunks=True)


def _cross_entropy(
    decoder: Decoder, ids: Tensor, marks: Marks | None, *, compile_chunks: bool
) -> tuple[Tensor, dict[str, float]]:
    segments = None if marks is None else marks.segments
    hidden = decoder(ids[:, :-1], segments=segments).flatten(0, 1)  # N D
    targets = ids[:, 1:].reshape(-1).long()  # N
    if marks is not None:  # the head's products are made for counted targets alone
        counted = marks.counted.flatten()
        hidden, targets = hidden[counted], targets[counted]
    weight = decoder.embed.weight if decoder.head is None else decoder.head.weight  # V D
    # How many are counted changes from batch to batch: sizes must not be compiled in.
    gradient = _compiled_gradient(marks is not None) if compile_chunks else chunk_gradient
    gradient = through_head(decoder.config, gradient)
    return mean_loss(hidden, weight, targets, gradient=gradient), {}


class _ChunkedLoss(torch.autograd.Function):
    """Mean loss whose gradients are ready when the forward pass ends."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        rows: int,
        gradient_of: ChunkGradient,
        gradients: bool,  # needs_input_grad is True even under no_grad
    ) -> Tensor:
        cast = weight.to(hidden.dtype)  # V D
        of_hidden = torch.empty_like(hidden) if gradients else None  # N D
        # A frozen head needs none: a third of its work.
        of_weight = torch.zeros_like(weight) if gradients and weight.requires_grad else None  # V D
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for at in range(0, len(targets), rows):
            piece = slice(at, at + rows)
            logits = F.linear(hidden[piece], cast)  # n V
            part, gradient = gradient_of(logits, targets[piece])
            loss += part
            if of_hidden is not None:
                of_hidden[piece] = gradient @ cast
            if of_weight is not None:
                of_weight += gradient.t() @ hidden[piece]
        ctx.save_for_backward(of_hidden, of_weight)
        ctx.count = len(targets)
        return loss / len(targets)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = ctx.saved_tensors
        factor = outer[0] / ctx.count
        learned = None if of_weight is None else of_weight * factor
        return of_hidden * factor, learned, None, None, None, None
