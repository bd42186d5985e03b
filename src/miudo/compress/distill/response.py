"""Response distillation: the student learns the teacher's whole next-token distribution.

For: forward KL with a temperature plus cross-entropy (Hinton et al. 2015), as a loss for
`miudo.train.loop.fit`.
Not for: hidden states, relations between tokens, or a teacher with another vocabulary.
Read next: `miudo.train.loop`, then `miudo.compress.verbs`.

Shapes: B batch, T positions, N = B T, D d_model (of student or teacher), V vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.utils.checkpoint import checkpoint

from miudo.compress.method import check_finite, in_range
from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError

__all__ = ["ResponseSettings", "check_same_vocabulary", "response_loss"]

_CHUNK_LOGITS = 1 << 21
"""Logits alive at a time, of each model: 8 MB of float32."""


@dataclass(frozen=True, slots=True)
class ResponseSettings:
    """The loss is `alpha * T^2 * KL(teacher_T || student_T) + (1 - alpha) * cross-entropy`.

    T is `temperature`; T^2 keeps the KL's gradient at the size of the cross-entropy's. Both
    terms are means over tokens, in float32. Raises ConfigError for a value out of range.
    """

    temperature: float = 2.0
    alpha: float = 0.5

    def __post_init__(self) -> None:
        in_range("temperature", self.temperature, 0.05, 100.0)
        in_range("alpha", self.alpha, 0.0, 1.0)


def response_loss(
    teacher: Decoder, settings: ResponseSettings, *, chunk_logits: int = _CHUNK_LOGITS
) -> Callable[[Decoder, Tensor], tuple[Tensor, dict[str, float]]]:
    """Returns a loss of (student, ids [B, T + 1]) for `fit`, with the teacher inside.

    It gives the total and its parts `kl` (with its T^2) and `cross_entropy`, in nats a token.
    The teacher may be of any float type; no gradient reaches it. The loss raises ConfigError
    if the vocabularies differ, and CheckFailedError now if the teacher holds NaN.
    """
    check_finite(teacher)

    def loss(student: Decoder, ids: Tensor) -> tuple[Tensor, dict[str, float]]:
        check_same_vocabulary(teacher.config, student.config)
        inputs, targets = ids[:, :-1], ids[:, 1:].reshape(-1).long()  # B T, N
        with torch.no_grad():
            taught = teacher(inputs).flatten(0, 1)  # N D
        learnt = student(inputs).flatten(0, 1)  # N D
        step = max(1, chunk_logits // student.config.vocab_size)
        sums = torch.zeros(2)
        for at in range(0, len(targets), step):
            piece = slice(at, at + step)
            # Recomputed in the backward pass: [N, V] never lives whole.
            sums = sums + checkpoint(
                _chunk,
                student,
                teacher,
                learnt[piece],
                taught[piece],
                targets[piece],
                settings.temperature,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        kl, cross_entropy = sums / len(targets)
        total = settings.alpha * kl + (1.0 - settings.alpha) * cross_entropy
        return total, {"kl": kl.item(), "cross_entropy": cross_entropy.item()}

    return loss


def check_same_vocabulary(teacher: ModelConfig, student: ModelConfig) -> None:
    """Raises ConfigError naming both sizes if they differ."""
    if teacher.vocab_size != student.vocab_size:
        raise ConfigError(
            f"the teacher's vocabulary has {teacher.vocab_size} tokens, the student's "
            f"{student.vocab_size}",
            remedy="Give the student the teacher's tokenizer",
        )


def _chunk(
    student: Decoder,
    teacher: Decoder,
    learnt: Tensor,
    taught: Tensor,
    targets: Tensor,
    temperature: float,
) -> Tensor:
    """Returns [T^2 KL, cross-entropy], each summed over the chunk's tokens."""
    with torch.no_grad():
        wanted = (teacher.logits(taught).float() / temperature).log_softmax(-1)  # n V
    logits = student.logits(learnt).float()  # n V
    given = (logits / temperature).log_softmax(-1)  # n V
    kl = (wanted.exp() * (wanted - given)).sum() * temperature**2
    return torch.stack((kl, F.cross_entropy(logits, targets, reduction="sum")))
