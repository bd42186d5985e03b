"""Learning from a teacher with another tokenizer.

For: universal logit distillation (Boizard et al. 2024), and its hybrid with plain KL over the
tokens that both have (as GOLD in TRL), at the places where both have read the same bytes.
Not for: finding those places (`miudo.compress.distill.spans`). Where the tokenizers are one,
`miudo.compress.distill.response` is exact and cheaper.
Read next: `miudo.compress.distill.spans`.

Three comparisons, of which the hybrid takes all and `uld` the last two:

    shared  KL of the distributions seen in the shared tokens and one bucket for all others
    sorted  sum of |p_T - p_S|, both sorted: which token has which probability is not asked. Over
            the tokens not shared; with `uld` over all
    spans   KL of "the text goes on like this, or not", for spans of several tokens: what no
            single position compares. A span's probability is the product of its tokens'

Shapes: B batch, T positions, N = B T, n positions of a chunk, m compared, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from miudo.compress.distill.cached_loss import check_unmarked
from miudo.compress.distill.spans import AlignedRow, Aligner
from miudo.compress.method import check_finite, in_range
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, ConfigError
from miudo.train.loss import Marks, chunk_gradient, chunk_rows, mean_loss, through_head

__all__ = ["CrossLoss", "CrossMode", "CrossSettings", "cross_divergence"]

_SUREST = -1e-4
"""The log-probability of a span above which it counts as certain: its complement has a log."""


class CrossMode(StrEnum):
    """How distributions over different vocabularies are compared."""

    HYBRID = "hybrid"
    ULD = "uld"


@dataclass(frozen=True, slots=True)
class CrossSettings:
    """The loss is `alpha` parts of the teacher to 1 - alpha of the text.

    The teacher's part is T^2 KL over shared tokens, `uld` times the sorted difference, and `span`
    times the KL of spans, each a mean over what it compares. Raises ConfigError for a value out of
    range.
    """

    mode: CrossMode = CrossMode.HYBRID
    temperature: float = 1.0
    alpha: float = 0.5
    uld: float = 1.5
    span: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.mode, CrossMode):
            raise ConfigError(f"mode is {self.mode!r}", remedy=f"Known are {', '.join(CrossMode)}")
        in_range("temperature", self.temperature, 0.05, 100.0)
        in_range("alpha", self.alpha, 0.0, 1.0)
        in_range("uld", self.uld, 0.0, 1e6)
        in_range("span", self.span, 0.0, 1e6)


class CrossLoss:
    """A `Loss` of running text with a teacher inside whose tokenizer is another.

    The parts are `shared`, `sorted` and `spans` as above, `cross_entropy`, all in nats (`sorted`
    in probability), and `compared`: the share of targets at which something was. Raises
    CheckFailedError for a teacher that holds NaN; calling it, if nothing could be compared.
    """

    def __init__(self, teacher: Decoder, aligner: Aligner, settings: CrossSettings) -> None:
        check_finite(teacher)
        self._teacher, self._aligner, self._settings = teacher, aligner, settings
        shared = aligner.shared
        if settings.mode is CrossMode.ULD:
            shared = shared[:0]
        self._shared = torch.from_numpy(shared)  # n 2

    def __call__(
        self, student: Decoder, ids: Tensor, marks: Marks | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Returns the loss over the student's ids [B, T + 1], and its parts."""
        check_unmarked(marks, "--cross")
        s, teacher = self._settings, self._teacher.to(ids.device)
        rows = self._aligner.rows(ids.cpu().numpy().astype(np.int32))
        length, most = ids.shape[1] - 1, teacher.config.max_positions
        longest = max(1, *(len(row.teacher_ids) for row in rows))
        places = _Places(rows, length, min(most, longest))
        if not len(places.student):
            raise CheckFailedError(
                "no place was found where teacher and student have read the same",
                where="cross-tokenizer distillation",
                remedy="Check that the data is packed with the student's tokenizer",
            )
        with torch.no_grad():
            taught = teacher(places.teacher_ids.to(ids.device)).flatten(0, 1)  # B L, D
        learnt = student(ids[:, :-1]).flatten(0, 1)  # N D
        targets = ids[:, 1:].reshape(-1).long()  # N
        weight = student.embed.weight if student.head is None else student.head.weight  # V D
        partner = torch.full((len(targets),), -1, device=ids.device)
        partner[places.student.to(ids.device)] = places.teacher.to(ids.device)
        push, spans = self._spans(places, taught, student, learnt.detach(), targets)
        n, m = len(targets), len(places.student)
        sums = torch.zeros(3, device=ids.device)

        def gradient(logits: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
            plain, of_plain = chunk_gradient(logits, targets[at])
            slope = of_plain.float() * (1.0 - s.alpha + s.alpha * push[at])[:, None]
            here = partner[at] >= 0
            parts = torch.zeros(2, device=logits.device)
            if here.any():
                wanted = self._logits(taught[partner[at][here]])  # m V
                parts, of_parts = self._compared(logits[here].float(), wanted)
                slope[here] += (s.alpha * n / m) * of_parts
            sums.add_(torch.cat((parts, plain[None])))
            far = (parts[0] + s.uld * parts[1]) * (n / m)
            return (1.0 - s.alpha) * plain + s.alpha * far, slope.to(logits.dtype)

        through = through_head(student.config, gradient)
        total = mean_loss(learnt, weight, torch.arange(n, device=ids.device), gradient=through)
        shared, ordered, plain = (sums / torch.tensor([m, m, n], device=ids.device)).tolist()
        parts = {"shared": shared, "sorted": ordered, "spans": spans, "cross_entropy": plain}
        return total + s.alpha * s.span * spans, {**parts, "compared": m / n}

    def _compared(self, logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the sums over m places [T^2 KL, sorted difference], and the gradient [m, V]."""
        s = self._settings
        with torch.enable_grad():
            z = logits.detach().requires_grad_()
            kl, ordered = cross_divergence(z, wanted, self._shared.to(z.device), s.temperature)
            far = kl.sum() + s.uld * ordered.sum()
            (slope,) = torch.autograd.grad(far, z)
        return torch.stack((kl.sum(), ordered.sum())).detach(), slope

    def _spans(
        self, places: _Places, taught: Tensor, student: Decoder, learnt: Tensor, targets: Tensor
    ) -> tuple[Tensor, float]:
        """Returns how hard spans pull each target [N], and the mean of their KL.

        d KL / d log P_S = (P_S - P_T) / (1 - P_S), which goes to every token of the span alike.
        """
        push = torch.zeros(len(targets), device=targets.device)
        if not self._settings.span or not places.spans:
            return push, 0.0
        mine = [s for span in places.spans for s in span.student]
        theirs = [t for span in places.spans for t in span.teacher]
        of_mine = [k for k, span in enumerate(places.spans) for _ in span.student]
        of_theirs = [k for k, span in enumerate(places.spans) for _ in span.teacher]
        following = places.teacher_targets.to(targets.device)
        with torch.no_grad():
            asked = _summed(
                _log_chances(taught, theirs, following, self._logits), of_theirs
            ).clamp_(max=_SUREST)
            given = _summed(_log_chances(learnt, mine, targets, student.logits), of_mine).clamp_(
                max=_SUREST
            )
            p, q = asked.exp(), given.exp()
            kl = p * (asked - given) + (1.0 - p) * (torch.log1p(-p) - torch.log1p(-q))
            pull = (q - p) / (1.0 - q)  # by log P_S; cross-entropy's gradient is by -log p
            scale = self._settings.span * len(targets) / len(places.spans)
            index = torch.tensor(of_mine, device=targets.device)
            push[torch.tensor(mine, device=targets.device)] = -scale * pull[index]
        return push, float(kl.mean())

    def _logits(self, hidden: Tensor) -> Tensor:
        # Chunks run outside autocast, from which the states may come narrower than the weights.
        with torch.no_grad():
            return self._teacher.logits(hidden.to(self._teacher.embed.weight.dtype)).float()


def cross_divergence(
    logits: Tensor, wanted: Tensor, shared: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Returns T^2 KL over the tokens `shared` [n, 2], and the sorted difference of the others.

    Both are [m], of student logits [m, V] and teacher logits [m, V of the teacher]. All tokens not
    shared are one bucket of the KL; where one side has none of them, the KL is that of the
    distributions given that a shared token comes, and there is nothing to sort.
    """
    given, asked = ((x / temperature).log_softmax(-1) for x in (logits, wanted))
    mine, theirs = _without(given, shared[:, 0]), _without(asked, shared[:, 1])
    zero = given.new_zeros(len(given))
    both = mine.shape[1] > 0 and theirs.shape[1] > 0
    kl = zero
    if len(shared):
        s, t = given[:, shared[:, 0]], asked[:, shared[:, 1]]  # m n
        if both:
            s = torch.cat((s, mine.logsumexp(-1, keepdim=True)), 1)
            t = torch.cat((t, theirs.logsumexp(-1, keepdim=True)), 1)
        else:
            s, t = s.log_softmax(-1), t.log_softmax(-1)
        kl = temperature**2 * (t.exp() * (t - s)).sum(-1)
    if not both:
        return kl, zero
    p, q = (x.exp().sort(-1, descending=True).values for x in (theirs, mine))
    size = max(p.shape[1], q.shape[1])
    p, q = (torch.nn.functional.pad(x, (0, size - x.shape[1])) for x in (p, q))
    return kl, (p - q).abs().sum(-1)


@dataclass(frozen=True, slots=True)
class _Span:
    """Flat positions that predict the tokens of one span, on either side."""

    student: range
    teacher: range


class _Places:
    """Aligned rows as flat positions: hidden state i - 1 predicts token i.

    `student` and `teacher` [m] are the positions at which both predict what follows the same
    bytes; `spans` are those of more than one token on a side.
    """

    def __init__(self, rows: Sequence[AlignedRow], length: int, width: int) -> None:
        self.teacher_ids = torch.zeros((len(rows), width), dtype=torch.int64)  # B L
        targets = torch.zeros((len(rows), width), dtype=torch.int64)
        mine: list[int] = []
        theirs: list[int] = []
        self.spans: list[_Span] = []
        for r, row in enumerate(rows):
            known = torch.tensor(row.teacher_ids[: width + 1], dtype=torch.int64)
            self.teacher_ids[r, : len(known[:width])] = known[:width]
            targets[r, : len(known[1:])] = known[1:]
            places = [(i, j) for i, j in row.places.tolist() if i and j]
            for k, (i, j) in enumerate(places):
                if i > length or j > width:
                    break
                mine.append(r * length + i - 1)
                theirs.append(r * width + j - 1)
                if k + 1 == len(places):
                    break
                after_i, after_j = places[k + 1]
                if max(after_i - i, after_j - j) > 1 and after_i > i and after_j > j:
                    a, b = r * length - 1, r * width - 1
                    if after_i <= length + 1 and after_j <= min(len(row.teacher_ids), width + 1):
                        span = _Span(range(a + i, a + after_i), range(b + j, b + after_j))
                        self.spans.append(span)
        self.student, self.teacher = torch.tensor(mine), torch.tensor(theirs)
        self.teacher_targets = targets.flatten()


def _log_chances(
    hidden: Tensor, at: Sequence[int], targets: Tensor, head: Callable[[Tensor], Tensor]
) -> Tensor:
    """Returns the log-probability of the target of each position in `at`, chunk by chunk."""
    index = torch.tensor(at, device=hidden.device)
    parts = []
    for piece in torch.split(index, chunk_rows(1 << 14)):
        logits = head(hidden[piece]).float()
        parts.append(logits.log_softmax(-1).gather(1, targets[piece][:, None])[:, 0])
    return torch.cat(parts)


def _summed(values: Tensor, of: Sequence[int]) -> Tensor:
    """Returns the sums of the values of each number in `of`, which counts from 0."""
    index = torch.tensor(of, device=values.device)
    return values.new_zeros(of[-1] + 1).index_add_(0, index, values)


def _without(logprobs: Tensor, ids: Tensor) -> Tensor:
    kept = torch.ones(logprobs.shape[1], dtype=torch.bool, device=logprobs.device)
    kept[ids] = False
    return logprobs[:, kept]
