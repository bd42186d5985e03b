"""Response distillation: the student learns the teacher's whole next-token distribution.

For: forward KL with a temperature plus cross-entropy (Hinton et al. 2015), as a loss for
`miudo.train.loop.fit`.
Not for: hidden states, relations between tokens, or a teacher with another vocabulary.
Read next: `miudo.train.loss`, whose chunks carry this loss, then `miudo.compress.verbs`.

Shapes: B batch, T positions, N = B T, n positions of a chunk, D d_model, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from miudo.compress.method import check_finite, in_range
from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError
from miudo.train.loss import Marks, mean_loss

__all__ = [
    "ChunkFunction",
    "ResponseLoss",
    "ResponseSettings",
    "check_same_vocabulary",
    "chunk_gradient",
]

_CHUNK_LOGITS = 1 << 20
_CHUNK_ROWS = 256
"""A chunk fits a core's cache (4 MB of float32), and has rows enough for a fast product."""

ChunkFunction = Callable[[Tensor, Tensor, Tensor, float, float], tuple[Tensor, Tensor]]


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


class ResponseLoss:
    """A `Loss` with the teacher inside: (student, ids [B, T + 1]) -> total and its parts.

    The parts are `kl`, its T^2 included, and `cross_entropy`, in nats a token. The teacher may
    be of any float type and is not changed; no gradient reaches it. Raises CheckFailedError if
    the teacher holds NaN; calling it raises ConfigError if the vocabularies differ.
    """

    def __init__(
        self,
        teacher: Decoder,
        settings: ResponseSettings,
        *,
        chunk_logits: int | None = None,
        chunk: ChunkFunction | None = None,
    ) -> None:
        check_finite(teacher)
        vocab = teacher.config.vocab_size
        self._teacher, self._settings = teacher, settings
        self._chunk_logits = chunk_logits or max(_CHUNK_LOGITS, _CHUNK_ROWS * vocab)
        self._chunk = chunk or chunk_gradient
        self._fast: ResponseLoss | None = None

    def compiled(self) -> ResponseLoss:
        """Returns the same loss with its inner pass and the teacher's blocks compiled."""
        if self._fast is None:
            self._fast = ResponseLoss(
                _compiled_twin(self._teacher),
                self._settings,
                chunk_logits=self._chunk_logits,
                chunk=torch.compile(chunk_gradient, dynamic=False),
            )
        return self._fast

    def __call__(
        self, student: Decoder, ids: Tensor, marks: Marks | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Returns the loss over ids [B, T + 1], or its counted targets, and its parts."""
        check_same_vocabulary(self._teacher.config, student.config)
        self._teacher.to(ids.device)  # where the student is; does nothing from the second call on
        inputs, targets = ids[:, :-1], ids[:, 1:].reshape(-1).long()  # B T, N
        segments = None if marks is None else marks.segments
        with torch.no_grad():
            taught = self._teacher(inputs, segments=segments).flatten(0, 1)  # N D
        learnt = student(inputs, segments=segments).flatten(0, 1)  # N D
        if marks is not None:
            counted = marks.counted.flatten()
            taught, learnt, targets = taught[counted], learnt[counted], targets[counted]
        sums = torch.zeros(2, device=ids.device)
        kind = ids.device.type
        wide = torch.is_autocast_enabled(kind)

        def gradient(logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            # The chunks of `mean_loss` run outside autocast: the teacher's head goes back in.
            with torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=wide):
                wanted = self._teacher.logits(taught[rows])  # n V
            settings = self._settings
            parts, slope = self._chunk(
                logits, wanted, targets[rows], settings.temperature, settings.alpha
            )
            sums.add_(parts)
            return settings.alpha * parts[0] + (1.0 - settings.alpha) * parts[1], slope

        weight = student.embed.weight if student.head is None else student.head.weight  # V D
        rows = torch.arange(len(targets), device=ids.device)
        total = mean_loss(learnt, weight, rows, gradient=gradient, chunk_logits=self._chunk_logits)
        kl, cross_entropy = (sums / len(targets)).tolist()
        return total, {"kl": kl, "cross_entropy": cross_entropy}


def check_same_vocabulary(teacher: ModelConfig, student: ModelConfig) -> None:
    """Raises ConfigError naming both sizes if they differ."""
    if teacher.vocab_size != student.vocab_size:
        raise ConfigError(
            f"the teacher's vocabulary has {teacher.vocab_size} tokens, the student's "
            f"{student.vocab_size}",
            remedy="Give the student the teacher's tokenizer",
        )


def _compiled_twin(teacher: Decoder) -> Decoder:
    """Returns a decoder on the teacher's own memory whose blocks are compiled."""
    with torch.device("meta"):
        twin = Decoder(teacher.config)
    twin.load_state_dict(teacher.state_dict(), assign=True)
    for block in twin.layers:
        block.compile(dynamic=False)
    return twin


def chunk_gradient(
    logits: Tensor, wanted: Tensor, targets: Tensor, temperature: float, alpha: float
) -> tuple[Tensor, Tensor]:
    """Returns the sums over n tokens [T^2 KL, cross-entropy], and d(their blend)/d(logits).

    `logits` are the student's, `wanted` the teacher's, both [n, V]. The gradient of T^2 KL is
    T (student_T - teacher_T). Plain tensor operations, so that torch.compile makes one pass.
    """
    x = logits.float()  # n V
    plain = x.log_softmax(-1)  # n V
    given = (x / temperature).log_softmax(-1)  # n V
    asked = (wanted.float() / temperature).log_softmax(-1)  # n V
    weight = asked.exp()  # n V
    kl = temperature**2 * (weight * (asked - given)).sum()
    cross_entropy = -plain.gather(1, targets[:, None]).sum()
    hit = torch.arange(x.shape[1], device=x.device)[None, :] == targets[:, None]  # n V
    slope = (alpha * temperature) * (given.exp() - weight)
    slope = slope + (1.0 - alpha) * (plain.exp() - hit.float())
    return torch.stack((kl, cross_entropy)), slope.to(logits.dtype)
