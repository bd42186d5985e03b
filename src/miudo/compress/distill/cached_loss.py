"""Learning from a teacher that is not there: its answers come from a cache.

For: response distillation's loss over what `miudo.compress.distill.cached` has stored.
Not for: a teacher in memory (`miudo.compress.distill.response`).
Read next: `miudo.compress.distill.codes`, what is known of each token.

Of the top ids the divergence is that of the distribution seen in k + 1 buckets, the ids not kept
being one: a lower bound of the whole KL. To spread or cut off the tail instead would teach the
student to be surer than its teacher.

Shapes: B batch, T positions, N = B T, n positions of a chunk, V vocab_size, k ids kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miudo.compress.distill.cached import TeacherCache
from miudo.compress.distill.codes import Coarse, DrawCodes
from miudo.compress.distill.divergence import ALPHA, TEMPERATURE
from miudo.compress.method import in_range
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError, DataError
from miudo.philox import Orders
from miudo.train.loss import Marks, chunk_gradient, mean_loss, through_head
from miudo.train.stepper import Tokens

__all__ = [
    "CachedLoss",
    "CachedSettings",
    "FixedBlocks",
    "check_unmarked",
    "coarse_gradient",
    "drawn_gradient",
    "filled_gradient",
]

_LEAST = -80.0
"""A log-probability of the student's rest below which its share is taken for this."""


@dataclass(frozen=True, slots=True)
class CachedSettings:
    """The loss is `alpha` parts of the teacher at `temperature` to 1 - alpha of the text.

    Raises ConfigError for a value out of range.
    """

    temperature: float = TEMPERATURE
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        in_range("temperature", self.temperature, 0.05, 100.0)
        in_range("alpha", self.alpha, 0.0, 1.0)


class FixedBlocks:
    """`Tokens` whose batches are the blocks of `data` themselves, each epoch in another order.

    A pass of `PackedTokens` shifts its blocks; a teacher that was asked once knows them unshifted.
    """

    def __init__(self, data: Tokens) -> None:
        self._data = data
        self._orders = Orders()

    @property
    def sha256(self) -> str:
        """That of the data."""
        return self._data.sha256

    def n_blocks(self, length: int) -> int:
        """Returns how many blocks there are."""
        return self._data.n_blocks(length)

    def block(self, index: int, length: int) -> npt.NDArray[np.int32]:
        """Returns ids [length + 1]."""
        return self._data.block(index, length)

    def batch(self, seed: int, step: int, batch_size: int, length: int) -> npt.NDArray[np.int32]:
        """Returns ids [batch_size, length + 1]: a function of the arguments alone."""
        n = self.n_blocks(length)
        rows = []
        for place in range(step * batch_size, (step + 1) * batch_size):
            epoch, index = divmod(place, n)
            rows.append(self.block(int(self._orders.of(seed, epoch, n)[index]), length))
        return np.stack(rows)


class CachedLoss:
    """A `Loss` over cached answers: `alpha * T^2 * divergence + (1 - alpha) * cross-entropy`.

    Of top ids alone the divergence is the KL in buckets (part `kl`). With draws it is the KL and
    an entropy of the teacher's in expectation, with the KL's gradient (part `drawn`): that of all
    ids, or of those in the bucket where top ids are kept too. Nats a token. Serves running text in
    the cache's own blocks (`FixedBlocks`). Raises ConfigError for a temperature that the cache does
    not hold.
    """

    def __init__(self, cache: TeacherCache, settings: CachedSettings) -> None:
        cache.plan.codes.check(settings.temperature)
        self._cache, self._settings = cache, settings

    def __call__(
        self, student: Decoder, ids: Tensor, marks: Marks | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Returns the loss over ids [B, T + 1], and its parts.

        Raises ConfigError for another vocabulary, DataError for blocks that are not cached.
        """
        check_unmarked(marks, "--cache")
        plan, settings = self._cache.plan, self._settings
        if student.config.vocab_size != plan.vocab_size:
            raise ConfigError(
                f"the student has {student.config.vocab_size} tokens, the cache {plan.vocab_size}",
                remedy="Give the student the teacher's tokenizer",
            )
        codes = self._cache.codes(ids.cpu().numpy().astype(np.int32)).reshape(-1)  # N
        targets = ids[:, 1:].reshape(-1).long()  # N
        hidden = student(ids[:, :-1]).flatten(0, 1)  # N D
        sums = torch.zeros(2, device=ids.device)

        def gradient(logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            known = codes[rows.cpu().numpy()]
            if isinstance(plan.codes, DrawCodes):
                drawn = torch.from_numpy(known["ids"].astype(np.int64)).to(logits.device)
                far, slope = drawn_gradient(logits, drawn, settings.temperature)
            else:
                coarse = plan.codes.decode(known, plan.vocab_size, settings.temperature)
                here = coarse.to(logits.device)
                by = coarse_gradient if here.drawn is None else filled_gradient
                far, slope = by(logits, here, settings.temperature)
            plain, of_plain = chunk_gradient(logits, targets[rows])
            sums.add_(torch.stack((far, plain)))
            alpha = settings.alpha
            both = alpha * slope + (1.0 - alpha) * of_plain.float()
            return alpha * far + (1.0 - alpha) * plain, both.to(logits.dtype)

        weight = student.embed.weight if student.head is None else student.head.weight  # V D
        rows = torch.arange(len(targets), device=ids.device)
        through = through_head(student.config, gradient)
        total = mean_loss(hidden, weight, rows, gradient=through)
        divergence, cross_entropy = (sums / len(targets)).tolist()
        name = "drawn" if plan.codes.draws else "kl"
        return total, {name: divergence, "cross_entropy": cross_entropy}


def check_unmarked(marks: Marks | None, where: str) -> None:
    """Raises DataError for samples in rows: this loss serves running text alone."""
    if marks is not None:
        raise DataError(
            "learns from running text alone, the data is conversations",
            where=where,
            remedy="Prepare the text as running text, or ask the teacher the plain way",
        )


def coarse_gradient(logits: Tensor, coarse: Coarse, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns the sum over n tokens of T^2 KL(teacher || student) in buckets, and its gradient.

    With s the student at T, r the teacher's rest and s_r the student's, the gradient of T^2 KL
    is T (s_v - p_v) for an id v that is kept, and T s_v (1 - r / s_r) for any other.
    """
    given = (logits.float() / temperature).log_softmax(-1)  # n V
    kept = given.gather(1, coarse.ids)  # n k
    others = given.scatter(1, coarse.ids, -math.inf).logsumexp(-1).clamp(min=_LEAST)  # n
    asked, rest = coarse.logprobs.exp(), coarse.rest.exp()  # n k, n
    divergence = (asked * (coarse.logprobs - kept)).sum() + (rest * (coarse.rest - others)).sum()
    slope = given.exp() * (1.0 - (coarse.rest - others).exp())[:, None]
    slope = slope.scatter(1, coarse.ids, kept.exp() - asked)
    return temperature**2 * divergence, temperature * slope


def filled_gradient(logits: Tensor, coarse: Coarse, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns T^2 times the summed divergence, its bucket filled by ids drawn, and its gradient.

    In expectation the value is T^2 (KL + r H), r being the rest and H the entropy inside it, and
    the gradient that of T^2 KL: T (s_v - p_v), p_v being r / N a draw for ids that are not kept.
    """
    given = (logits.float() / temperature).log_softmax(-1)  # n V
    kept = given.gather(1, coarse.ids)  # n k
    drawn = coarse.drawn if coarse.drawn is not None else coarse.ids[:, :0]  # n N
    asked, rest = coarse.logprobs.exp(), coarse.rest.exp()  # n k, n
    each = (rest / drawn.shape[1])[:, None].expand(drawn.shape)  # n N
    far = (asked * (coarse.logprobs - kept)).sum() + (rest * coarse.rest).sum()
    far = far - (each * given.gather(1, drawn)).sum()
    slope = given.exp().scatter_add_(1, coarse.ids, -asked).scatter_add_(1, drawn, -each)
    return temperature**2 * far, temperature * slope


def drawn_gradient(logits: Tensor, drawn: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns T^2 times the summed cross-entropy under ids drawn [n, N], and its gradient.

    Each draw weighs 1 / N. Over draws from the teacher at T the mean gradient is that of T^2 KL.
    """
    given = (logits.float() / temperature).log_softmax(-1)  # n V
    share = 1.0 / drawn.shape[1]
    far = -share * given.gather(1, drawn).sum()
    slope = given.exp().scatter_add_(1, drawn, torch.full_like(drawn, -share, dtype=given.dtype))
    return temperature**2 * far, temperature * slope
