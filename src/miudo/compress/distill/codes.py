"""A teacher's next-token distribution in 50 bytes: its most probable ids, and ids drawn from it.

For: what a cache of a teacher's answers stores of each token, and reading it back.
Not for: files (`miudo.compress.distill.cached`) or the loss (`miudo.compress.distill.cached_loss`).
Read next: `miudo.compress.distill.cached`.

Top k ids cost 3k + 2 bytes a token, 50 at k = 16 (5k + 2 where a vocabulary needs 32-bit ids):

    ids    k x u16       most probable first
    span   f16           how much less log-probability the k-th has than the first, in nats
    steps  (k - 2) x u8  the same of the ids between, in 255ths of `span`
    rest   u16           10 bits: log(r / (1 - r)) from -16 on in 32nds of a nat;
                         6 bits: log m in 63rds of log(V - k)

Of the rest, ids may be drawn: 2 (4) bytes each, 50 in all at k = 8 with 12 draws.

The first log-probability is not stored: all k and the rest r sum to 1. The rest counts as m
tokens of equal probability, m being chosen so that the rest's weight is right at temperature 1
and at the one that the codes were made for; a log-sum-exp at 1 alone would not tell it.

Shapes: n tokens, V vocab_size, k ids kept, N ids drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from miudo.compress.distill.divergence import TEMPERATURE
from miudo.compress.method import in_range
from miudo.errors import ConfigError

__all__ = ["Coarse", "Codes", "DrawCodes", "TopCodes", "coarse_kl"]

Codes = npt.NDArray[np.void]
"""Records, one a token."""

_NATS, _LOWEST = 32, -16.0
"""Codes a nat of the rest's odds, and their logarithm where the codes begin."""
_BEHIND = 1 << 192
"""Training orders use Philox's first counters; draws begin far behind them."""
_FAR = 60.0
"""A log-probability this far below the first is as good as none."""


@dataclass(frozen=True, slots=True)
class Coarse:
    """A distribution of k ids and one bucket for all others; the k + 1 sum to 1.

    `ids` int64 [n, k], `logprobs` [n, k] and `rest` [n], the bucket's log-probability, float32.
    `drawn` int64 [n, N] are ids drawn from what is in the bucket, None where none were.
    """

    ids: Tensor
    logprobs: Tensor
    rest: Tensor
    drawn: Tensor | None = None

    def to(self, device: torch.device) -> Coarse:
        """Returns the same on `device`."""
        drawn = None if self.drawn is None else self.drawn.to(device)
        ids, logprobs, rest = (x.to(device) for x in (self.ids, self.logprobs, self.rest))
        return Coarse(ids, logprobs, rest, drawn)


@dataclass(frozen=True, slots=True)
class TopCodes:
    """Keeps the `k` most probable ids, to be read at `temperature` or at 1.

    With `draws` so many ids are drawn from the rest at `temperature`, by which alone the codes are
    read then: the loss's gradient is that of the whole distribution in expectation, and only the
    rest of it is noisy. Raises ConfigError for a value out of range.
    """

    kind: ClassVar[str] = "top"

    k: int = 16
    temperature: float = TEMPERATURE
    draws: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("k", self.k, 2, 4096, whole=True)
        in_range("temperature", self.temperature, 0.05, 100.0)
        in_range("draws", self.draws, 0, 4096, whole=True)
        in_range("seed", self.seed, 0, (1 << 64) - 1, whole=True)

    def dtype(self, vocab_size: int) -> np.dtype[np.void]:
        """Returns the record of one token. Raises ConfigError for k of the vocabulary or more."""
        if self.k >= vocab_size:
            raise ConfigError(f"k is {self.k}, the vocabulary has {vocab_size} tokens")
        ids = _id_type(vocab_size)
        steps = ("steps", "u1", (self.k - 2,))
        drawn = [("drawn", ids, (self.draws,))] if self.draws else []
        return np.dtype([("ids", ids, (self.k,)), ("span", "<f2"), steps, ("rest", "<u2"), *drawn])

    def encode(self, logits: Tensor, block: int) -> Codes:
        """Returns the codes of a block's logits [n, V]; draws are keyed by seed and block."""
        every = logits.float().log_softmax(-1)  # n V
        top, ids = every.topk(self.k, dim=-1)  # n k
        others = every.scatter(1, ids, -math.inf)  # n V
        drop = (top[:, :1] - top).clamp_(max=_FAR)  # n k
        span = drop[:, -1].half()
        safe = span.float().clamp(min=1e-6)[:, None]
        steps = (drop[:, 1:-1] / safe * 255.0).round_().clamp_(0, 255)
        codes = np.empty(len(logits), self.dtype(logits.shape[1]))
        codes["ids"], codes["span"] = ids.cpu().numpy(), span.cpu().numpy()
        codes["steps"], codes["rest"] = steps.cpu().numpy(), self._rest(top, others).cpu().numpy()
        if self.draws:
            codes["drawn"] = _drawn(others, self.temperature, self.draws, self.seed, block)
        return codes

    def decode(self, codes: Codes, vocab_size: int, temperature: float) -> Coarse:
        """Returns the distributions at `temperature`, which `check` has let pass."""
        ids = torch.from_numpy(codes["ids"].astype(np.int64))  # n k
        span = torch.from_numpy(codes["span"].astype(np.float32))[:, None]  # n 1
        steps = torch.from_numpy(codes["steps"].astype(np.float32)) / 255.0  # n k-2
        packed = torch.from_numpy(codes["rest"].astype(np.int32))  # n
        odds = (packed >> 6).float() / _NATS + _LOWEST
        rest, kept = F.logsigmoid(odds), F.logsigmoid(-odds)  # n
        many = (packed & 63).float() / 63.0 * math.log(vocab_size - self.k)
        drop = torch.cat((torch.zeros_like(span), span * steps, span), 1)  # n k
        top = (kept - (-drop).logsumexp(-1))[:, None] - drop  # n k, at temperature 1
        sharp = 1.0 / temperature
        both = torch.cat((sharp * top, ((1.0 - sharp) * many + sharp * rest)[:, None]), 1)
        both = both.log_softmax(-1)
        drawn = torch.from_numpy(codes["drawn"].astype(np.int64)) if self.draws else None
        return Coarse(ids, both[:, :-1], both[:, -1], drawn)

    def check(self, temperature: float) -> None:
        """Raises ConfigError for a temperature that the codes cannot be read at."""
        known = {self.temperature} if self.draws else {1.0, self.temperature}
        if temperature not in known:
            held = " and ".join(map(str, sorted(known)))
            raise ConfigError(
                f"temperature is {temperature}, the cache holds {held}",
                remedy="Choose one that it holds, or make another cache",
            )

    def _rest(self, top: Tensor, others: Tensor) -> Tensor:
        """Returns the code of what is not kept: log-probabilities [n, V], -inf for the kept."""
        size = others.shape[1] - self.k
        odds = others.logsumexp(-1) - top.logsumexp(-1)  # n
        coded = ((odds - _LOWEST) * _NATS).round_().clamp_(0, 1023)
        count = torch.zeros_like(coded)
        if self.temperature != 1.0 and size > 1:
            sharp = 1.0 / self.temperature
            weight = (sharp * others).logsumexp(-1)
            rest = F.logsigmoid(coded / _NATS + _LOWEST)
            many = (weight - sharp * rest) / (1.0 - sharp)
            count = (many / math.log(size) * 63.0).round_().clamp_(0, 63)
        return (coded.to(torch.int32) << 6) | count.to(torch.int32)


@dataclass(frozen=True, slots=True)
class DrawCodes:
    """Keeps `draws` ids drawn from the distribution at `temperature`: 2 bytes each, 50 of 25.

    Their mean is the distribution: no tail is cut off, and the loss's gradient is that of the
    whole distribution in expectation (random sampling KD, Anshumann et al. 2025, with the
    proposal equal to the teacher). Raises ConfigError for a value out of range.
    """

    kind: ClassVar[str] = "draws"

    draws: int = 25
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("draws", self.draws, 1, 4096, whole=True)
        in_range("temperature", self.temperature, 0.05, 100.0)
        in_range("seed", self.seed, 0, (1 << 64) - 1, whole=True)

    def dtype(self, vocab_size: int) -> np.dtype[np.void]:
        """Returns the record of one token."""
        return np.dtype([("ids", _id_type(vocab_size), (self.draws,))])

    def encode(self, logits: Tensor, block: int) -> Codes:
        """Returns the codes of a block's logits [n, V]; draws are keyed by seed and block."""
        codes = np.empty(len(logits), self.dtype(logits.shape[1]))
        codes["ids"] = _drawn(logits, self.temperature, self.draws, self.seed, block)
        return codes

    def check(self, temperature: float) -> None:
        """Raises ConfigError for another temperature than that of the draws."""
        if temperature != self.temperature:
            raise ConfigError(
                f"temperature is {temperature}, the cache's ids were drawn at {self.temperature}",
                remedy="Choose that one, or make another cache",
            )


def coarse_kl(logits: Tensor, coarse: Coarse, temperature: float) -> Tensor:
    """Returns KL(teacher || coarse) [n] in nats, logits [n, V] being seen in `coarse`'s buckets."""
    every = (logits.float() / temperature).log_softmax(-1)  # n V
    rest = every.scatter(1, coarse.ids, -math.inf).logsumexp(-1)  # n
    top = every.gather(1, coarse.ids)  # n k
    kept = (top.exp() * (top - coarse.logprobs)).sum(-1)
    return kept + rest.exp() * (rest - coarse.rest)


def _drawn(
    logits: Tensor, temperature: float, draws: int, seed: int, block: int
) -> npt.NDArray[np.int64]:
    """Returns ids [n, draws] from the distributions of logits [n, V], -inf among them."""
    chances = (logits.double() / temperature).softmax(-1).nan_to_num_(0.0).cumsum(-1)  # n V
    raw = np.random.Philox(counter=_BEHIND, key=seed | block << 64).random_raw(len(logits) * draws)
    points = torch.from_numpy((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53)
    points = points.view(len(logits), draws).to(chances.device) * chances[:, -1:]
    ids = torch.searchsorted(chances, points, right=True).clamp_(max=logits.shape[1] - 1)
    found: npt.NDArray[np.int64] = ids.cpu().numpy()
    return found


def _id_type(vocab_size: int) -> Any:
    return "<u2" if vocab_size <= 1 << 16 else "<u4"
