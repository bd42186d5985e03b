"""How far a student's next-token distribution is from its teacher's, and the way back.

For: the divergences that distillation minimises, on plain tensors: a value a token, and its
gradient by the student's logits, written out, so that nothing of size tokens x vocabulary is
kept for a backward pass.
Not for: where the logits come from, or means over tokens (`miudo.compress.distill.response`).
Read next: `miudo.compress.distill.response`.

Shapes: n positions of a chunk, V vocab_size. Throughout, s = log p_S is the student's, t = log
p_T the teacher's, both [n, V] log-probabilities in float32 at one temperature.
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor

__all__ = [
    "ALPHA",
    "TEMPERATURE",
    "Divergence",
    "divergence",
    "forward_kl",
    "from_logits",
    "jensen_shannon",
    "log_probs",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
]

TEMPERATURE, ALPHA = 1.0, 0.9
"""Where nothing is said: of both distributions, and the teacher's weight beside the text's."""


class Divergence(StrEnum):
    """Which distance: `forward-kl` covers all the teacher does, `reverse-kl` what it does most.

    `jensen-shannon` lies between (Agarwal et al. 2024, GKD). The skew ones mix a little of the
    one into the other before they compare, and stay bounded (Ko et al. 2024, DistiLLM).
    """

    FORWARD_KL = "forward-kl"
    REVERSE_KL = "reverse-kl"
    JENSEN_SHANNON = "jensen-shannon"
    SKEW_KL = "skew-kl"
    SKEW_REVERSE_KL = "skew-reverse-kl"
    TOTAL_VARIATION = "total-variation"

    @property
    def default_mix(self) -> float:
        """The usual share of the teacher in the mixture; 0 where there is none."""
        if self is Divergence.JENSEN_SHANNON:
            return 0.5
        return 0.1 if self in (Divergence.SKEW_KL, Divergence.SKEW_REVERSE_KL) else 0.0


def log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns log softmax(logits / temperature) over the last axis, in float32 at least."""
    wide = logits if logits.dtype is torch.float64 else logits.float()
    return (wide if temperature == 1.0 else wide / temperature).log_softmax(-1)


def from_logits(
    kind: Divergence, logits: Tensor, wanted: Tensor, *, temperature: float = 1.0, mix: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Returns T^2 times the divergence of each token [n], and its gradient by `logits` [n, V].

    `logits` are the student's, as they are; `wanted` the teacher's log-probabilities at this
    temperature already (`log_probs`). T^2 keeps the gradient at its size (Hinton et al. 2015).
    """
    values, slope = divergence(kind, log_probs(logits, temperature), wanted, mix)
    return values * temperature**2, slope * temperature


def divergence(kind: Divergence, s: Tensor, t: Tensor, mix: float = 0.0) -> tuple[Tensor, Tensor]:
    """Returns the divergence of each token [n], and its gradient [n, V].

    The gradient is by u where s = log softmax(u). `mix` is beta or alpha of those that have one.
    """
    if kind is Divergence.FORWARD_KL:
        return forward_kl(s, t)
    if kind is Divergence.REVERSE_KL:
        return reverse_kl(s, t)
    if kind is Divergence.JENSEN_SHANNON:
        return jensen_shannon(s, t, mix)
    if kind is Divergence.SKEW_KL:
        return skew_kl(s, t, mix)
    if kind is Divergence.SKEW_REVERSE_KL:
        return skew_reverse_kl(s, t, mix)
    return total_variation(s, t)


def forward_kl(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns KL(p_T || p_S) [n], and its gradient p_S - p_T [n, V]."""
    taught = t.exp()
    return _weighted(taught, t - s).sum(-1), s.exp() - taught


def reverse_kl(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns KL(p_S || p_T) [n], and its gradient p_S (log p_S / p_T - KL) [n, V].

    Infinite where the student has mass on what the teacher says is impossible.
    """
    return _of_own_mass(s.exp(), s - t)


def jensen_shannon(s: Tensor, t: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Returns beta KL(p_T || M) + (1 - beta) KL(p_S || M) with M = beta p_T + (1 - beta) p_S.

    Its limits have the size of beta and 1 - beta: at 0 it is KL(p_T || p_S) and at 1
    KL(p_S || p_T) themselves, as in GKD. A small beta still lowers the learning rate.
    """
    if beta in (0.0, 1.0):
        return forward_kl(s, t) if beta == 0.0 else reverse_kl(s, t)
    mixed = _log_mixture(t, s, beta)
    own, slope = _of_own_mass(s.exp(), s - mixed)
    taught = _weighted(t.exp(), t - mixed).sum(-1)
    return beta * taught + (1.0 - beta) * own, (1.0 - beta) * slope


def skew_kl(s: Tensor, t: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Returns KL(p_T || alpha p_T + (1 - alpha) p_S) [n]; at most -log alpha."""
    if alpha == 0.0:
        return forward_kl(s, t)
    mixed, taught = _log_mixture(t, s, alpha), t.exp()
    student_share = (s - mixed + math.log1p(-alpha)).exp()  # of the mixture, n V
    pull = _weighted(taught, student_share)
    slope = s.exp() * pull.sum(-1, keepdim=True) - pull
    return _weighted(taught, t - mixed).sum(-1), slope


def skew_reverse_kl(s: Tensor, t: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Returns KL(p_S || (1 - alpha) p_T + alpha p_S) [n]; at most -log alpha."""
    if alpha == 0.0:
        return reverse_kl(s, t)
    mixed, own = _log_mixture(s, t, alpha), s.exp()
    student_share = (s - mixed + math.log(alpha)).exp()  # of the mixture, n V
    push = _weighted(own, s - mixed - student_share)
    slope = push - own * push.sum(-1, keepdim=True)
    return _weighted(own, s - mixed).sum(-1), slope


def total_variation(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns half the sum of |p_T - p_S| [n], and its gradient where it has one."""
    own = s.exp()
    difference = own - t.exp()
    push = 0.5 * difference.sign() * own
    return 0.5 * difference.abs().sum(-1), push - own * push.sum(-1, keepdim=True)


def _of_own_mass(own: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
    """The student's mean of `difference`, and p_S (difference - mean)."""
    parts = _weighted(own, difference)
    mean = parts.sum(-1, keepdim=True)
    return mean.squeeze(-1), parts - own * mean


def _weighted(mass: Tensor, value: Tensor) -> Tensor:
    """Mass times value, and 0 where there is no mass: 0 * log 0 is 0, floats say NaN.

    Not a filter for NaN: what is NaN in `mass` stays so, and the step is refused.
    """
    return (mass * value).masked_fill(mass == 0, 0.0)


def _log_mixture(a: Tensor, b: Tensor, share: float) -> Tensor:
    """log(share exp(a) + (1 - share) exp(b)), without leaving logarithms."""
    return torch.logaddexp(a + math.log(share), b + math.log1p(-share))
