"""Response terms: the student's next-token distributions against its teachers', in chunks.

For: any sum of divergences and cross-entropy in one pass over the logits, of which tokens x
vocabulary never exist at once (Hinton et al. 2015 and after).
Not for: the divergences themselves (`miudo.compress.distill.divergence`), or states inside
(`miudo.compress.distill.feature`).
Read next: `miudo.train.loss`, whose chunks carry this loss, then
`miudo.compress.distill.loss`.

Shapes: N tokens that count, n of them in a chunk, D d_model, V vocab_size, R response terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from miudo.compress.distill.divergence import divergence, log_probs
from miudo.compress.distill.terms import ResponseTerm, TextTerm
from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError, DataError
from miudo.train.loss import mean_loss, through_head

__all__ = [
    "ChunkFunction",
    "Comparison",
    "check_same_vocabulary",
    "chunk_gradient",
    "mixed_log_probs",
    "response_loss",
]

_CHUNK_LOGITS = 1 << 20
_CHUNK_ROWS = 256
"""A chunk fits a core's cache (4 MB of float32), and has rows enough for a fast product."""

ChunkFunction = Callable[[Tensor, Sequence[Tensor], Tensor, Tensor], tuple[Tensor, Tensor]]
"""(student's logits, each teacher's, targets, weights) -> (sums [R], gradient [n, V])."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """By which terms logits are compared, over the first `vocab` ids alone.

    `shares` are the teachers', of sum 1. `chunk_logits` None: as many as are fast.
    """

    terms: tuple[ResponseTerm | TextTerm, ...]
    shares: tuple[float, ...]
    vocab: int
    chunk_logits: int | None = field(default=None, compare=False)

    @property
    def needs_teachers(self) -> bool:
        """Whether a teacher is asked at all."""
        return any(isinstance(term, ResponseTerm) for term in self.terms)

    def chunk(self) -> ChunkFunction:
        """Returns `chunk_gradient` for this comparison."""
        return partial(chunk_gradient, self)

    def compiled_chunk(self, *, dynamic: bool) -> ChunkFunction:
        """Returns the same, compiled once; `dynamic` where chunks are of many sizes."""
        return _compiled_chunk(self, dynamic)


def response_loss(
    student: Decoder,
    learnt: Tensor,
    taught: Sequence[tuple[Decoder, Tensor]],
    targets: Tensor,
    weights: Tensor,
    comparison: Comparison,
    chunk: ChunkFunction,
) -> tuple[Tensor, Tensor]:
    """Returns the weighted sum of the terms' means over tokens, and the means [R] themselves.

    `learnt` [N, D] is the student's final hidden state, `taught` every teacher with its own,
    `targets` [N] the ids that come next, `weights` [R]. No gradient reaches a teacher. Raises
    DataError for a target beyond the shared vocabulary.
    """
    vocab = comparison.vocab
    if vocab < student.config.vocab_size and int(targets.max()) >= vocab:
        raise DataError(
            f"the text has id {int(targets.max())}, the shared vocabulary is of {vocab}",
            remedy="Give a --shared-vocab that holds all of the tokenizer's ids",
        )
    sums = torch.zeros(len(comparison.terms), device=learnt.device)
    kind = learnt.device.type
    wide = torch.is_autocast_enabled(kind)

    def gradient(logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        # The chunks of `mean_loss` run outside autocast: the teachers' heads go back in.
        with torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=wide), torch.no_grad():
            wanted = [teacher.logits(hidden[rows]) for teacher, hidden in taught]  # n V each
        parts, slope = chunk(logits, wanted, targets[rows], weights)
        sums.add_(parts)
        return (weights * parts).sum(), slope

    head = student.embed.weight if student.head is None else student.head.weight  # V D
    rows = torch.arange(len(targets), device=learnt.device)
    fitting = max(_CHUNK_LOGITS, _CHUNK_ROWS * student.config.vocab_size)
    total = mean_loss(
        learnt,
        head,
        rows,
        gradient=through_head(student.config, gradient),
        chunk_logits=comparison.chunk_logits or fitting,
    )
    return total, sums / len(targets)


def chunk_gradient(
    comparison: Comparison,
    logits: Tensor,
    wanted: Sequence[Tensor],
    targets: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """Returns each term's sum over n tokens [R], and d(weighted sum)/d(logits) [n, V].

    Plain tensor operations, so that torch.compile makes one pass of it; weights are a tensor,
    so that a schedule does not compile again at every step.
    """
    vocab = comparison.vocab
    cut = logits[:, :vocab]
    terms = comparison.terms
    hot = sorted({term.temperature for term in terms if isinstance(term, ResponseTerm)})
    plain = {1.0} if any(isinstance(term, TextTerm) for term in terms) else set()
    s = {at: log_probs(cut, at) for at in {*hot} | plain}  # n V each
    t = {at: mixed_log_probs(wanted, at, comparison.shares, vocab) for at in hot}
    sums: list[Tensor] = []
    slope: Tensor | None = None
    for term, weight in zip(terms, weights.unbind(), strict=True):
        if isinstance(term, ResponseTerm):
            at = term.temperature
            values, push = divergence(term.kind, s[at], t[at], term.share)
            values, push = values * at**2, push.mul_(weight * at)
        else:
            values, push = _cross_entropy(s[1.0], targets)
            push = push.mul_(weight)
        sums.append(values.sum())
        slope = push if slope is None else slope.add_(push)
    assert slope is not None  # noqa: S101 - a comparison has a term
    if vocab < logits.shape[1]:
        slope = F.pad(slope, (0, logits.shape[1] - vocab))
    return torch.stack(sums), slope.to(logits.dtype)


def mixed_log_probs(
    logits: Sequence[Tensor], temperature: float, shares: Sequence[float], vocab: int
) -> Tensor:
    """Returns the log of the teachers' mean probabilities over the first `vocab` ids [n, vocab].

    Probabilities and not their logarithms are averaged: the mean minimises the weighted sum of
    forward KLs to all teachers, and one teacher alone cannot forbid what others expect.
    """
    each = [log_probs(given[:, :vocab], temperature) for given in logits]
    if len(each) == 1:
        return each[0]
    shifted = [one + math.log(share) for one, share in zip(each, shares, strict=True)]
    return torch.stack(shifted).logsumexp(0)


def check_same_vocabulary(teacher: ModelConfig, student: ModelConfig, shared: int | None) -> int:
    """Returns over how many ids the two are compared.

    Raises ConfigError naming both sizes if they differ and `shared` does not say how many ids
    are real, or if it says more than there are.
    """
    sizes = (teacher.vocab_size, student.vocab_size)
    if shared is not None:
        if shared > min(sizes):
            raise ConfigError(
                f"the shared vocabulary is of {shared} ids, the teacher has {sizes[0]} and the "
                f"student {sizes[1]}",
                remedy=f"Give --shared-vocab {min(sizes)} or less",
            )
        return shared
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the teacher's vocabulary has {sizes[0]} tokens, the student's {sizes[1]}",
            remedy="Give the student the teacher's tokenizer; if it has it, and one is padded, "
            "say with --shared-vocab how many ids are real",
        )
    return sizes[0]


@cache
def _compiled_chunk(comparison: Comparison, dynamic: bool) -> ChunkFunction:
    # One function a comparison: PyTorch keeps code by function, and would try all of them.
    def run(
        logits: Tensor, wanted: Sequence[Tensor], targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        return chunk_gradient(comparison, logits, wanted, targets, weights)

    return torch.compile(run, dynamic=dynamic)


def _cross_entropy(s: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the log-probability of each target [n], and the gradient p_S - 1 at it [n, V]."""
    at = targets[:, None]  # n 1
    # No scatter: beside a softmax at another temperature PyTorch's compiler leaves it out.
    hit = at == torch.arange(s.shape[1], device=s.device)  # n V
    return -s.gather(1, at)[:, 0], s.exp() - hit.to(s.dtype)
