"""On-policy distillation: the student is corrected on what it writes itself.

For: GKD (Agarwal et al. 2024): with probability lambda a batch is continued by the student, and
any loss with a teacher is taken on those ids. A student that only ever reads the text never
learns to get out of its own mistakes.
Not for: the divergence, which the loss that is wrapped has; or rewards.
Read next: `miudo.compress.distill.loss`.

Nothing is remembered from step to step: draws are keyed by the seed and by the ids of a row, so
that a resumed run draws what an unbroken one does, however its batches are cut.

Shapes: B batch, T positions, P ids of a prompt, V vocab_size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from miudo.compress.distill.cached_loss import check_unmarked
from miudo.compress.method import in_range
from miudo.decoder.cache import KVCache
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError
from miudo.philox import uniform
from miudo.train.evaluation import as_it_runs
from miudo.train.loss import Learning, Loss, Marks, Scheduled, compiled

__all__ = ["OnPolicyLoss", "OnPolicySettings", "rollout", "row_key"]

_COIN = 1 << 62
"""The position of a batch's own number; those of ids are below."""


@dataclass(frozen=True, slots=True)
class OnPolicySettings:
    """`share` (lambda) of the batches are the student's own, begun with `prompt` of each row.

    `temperature` is that of the draws; nothing is cut off (no top-k, no top-p), for the loss is
    a mean over what the student does write. Raises ConfigError for a value out of range.
    """

    share: float = 0.5
    prompt: float = 0.25
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("share", self.share, 0.0, 1.0)
        in_range("prompt", self.prompt, 0.0, 0.95)
        in_range("temperature", self.temperature, 0.05, 10.0)
        in_range("seed", self.seed, 0, (1 << 64) - 1, whole=True)


class OnPolicyLoss:
    """A `Loss` of running text: `on_samples` over the student's own ids, else `on_text`.

    `on_samples` is shown marks that count the ids the student drew. It should hold no
    cross-entropy: a student that learns its own text by heart grows sure of its mistakes. Ids
    from `n_ids` on, which pad a vocabulary, are never drawn. The parts are those of the loss
    that was taken, and `sampled`, 1 where it was the student's text.
    """

    def __init__(
        self,
        on_samples: Loss,
        on_text: Loss,
        settings: OnPolicySettings,
        *,
        n_ids: int | None = None,
    ) -> None:
        self._on_samples, self._on_text = on_samples, on_text
        self._settings, self._n_ids = settings, n_ids

    def compiled(self) -> OnPolicyLoss:
        """Returns the same loss with the inner passes of both compiled."""
        inner = compiled(self._on_samples), compiled(self._on_text)
        return OnPolicyLoss(*inner, self._settings, n_ids=self._n_ids)

    @property
    def learned(self) -> nn.Module:
        """What both losses keep of their own beside the student, first values included."""
        inner = {"text": self._on_text, "samples": self._on_samples}
        kept = {name: loss.learned for name, loss in inner.items() if isinstance(loss, Learning)}
        return nn.ModuleDict(kept)

    def at(self, step: int, steps: int, batch: int) -> OnPolicyLoss:
        """Returns the loss whose inner ones are those of `step`."""

        def now(loss: Loss) -> Loss:
            return loss.at(step, steps, batch) if isinstance(loss, Scheduled) else loss

        samples, text = now(self._on_samples), now(self._on_text)
        return OnPolicyLoss(samples, text, self._settings, n_ids=self._n_ids)

    def __call__(
        self, student: Decoder, ids: Tensor, marks: Marks | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Returns the loss over ids [B, T + 1], or over what their beginnings become."""
        check_unmarked(marks, "--on-policy")
        s = self._settings
        if uniform(s.seed, row_key(ids), _COIN) >= s.share:
            total, parts = self._on_text(student, ids)
            return total, {**parts, "sampled": 0.0}
        kept = max(1, round(s.prompt * (ids.shape[1] - 1)))  # P
        drawn = rollout(student, ids[:, :kept], ids.shape[1], s, keys=ids, n_ids=self._n_ids)
        places = torch.arange(ids.shape[1] - 1, device=ids.device)  # T
        counted = (places >= kept - 1).expand(len(ids), -1)  # the target at t is the id at t + 1
        own = Marks(counted, torch.ones_like(drawn[:, 1:]))
        total, parts = self._on_samples(student, drawn, own)
        return total, {**parts, "sampled": 1.0}


def rollout(
    student: Decoder,
    prompts: Tensor,
    length: int,
    settings: OnPolicySettings,
    *,
    keys: Tensor | None = None,
    n_ids: int | None = None,
) -> Tensor:
    """Returns prompts [B, P] continued by the student to ids [B, length].

    The ids are those that an engine samples one by one, with `settings.seed` and each row's
    `row_key` as request; `keys` [B, ...] are the ids that make it, by default the prompts. Rows run
    together, over cached keys and values, without gradients. Raises CheckFailedError for logits
    that are not finite.
    """
    numbers = [row_key(row) for row in (prompts if keys is None else keys)]
    points = np.array(
        [[uniform(settings.seed, n, at) for at in range(prompts.shape[1], length)] for n in numbers]
    )  # B length-P
    chances = torch.from_numpy(points).to(prompts.device)
    ids = prompts
    kind = prompts.device.type
    with as_it_runs(student), torch.autocast(kind, enabled=False):
        cache = KVCache(student.config, len(prompts), prompts.device)
        fresh = prompts
        for at in range(length - prompts.shape[1]):
            logits = student.logits(student(fresh, cache=cache)[:, -1]).double()[:, :n_ids]  # B V
            if not torch.isfinite(logits.amax(-1)).all():
                raise CheckFailedError(
                    "the student's logits are not finite",
                    where=f"position {ids.shape[1]}",
                    remedy="Resume from the last checkpoint with a lower learning rate",
                )
            masses = (logits / settings.temperature).softmax(-1).cumsum(-1)
            point = chances[:, at : at + 1] * masses[:, -1:]
            fresh = torch.searchsorted(masses, point, right=True)  # B 1
            fresh = fresh.clamp_(max=logits.shape[1] - 1).to(ids.dtype)
            ids = torch.cat((ids, fresh), 1)
    return ids


def row_key(ids: Tensor) -> int:
    """Returns the number below 2**64 that keys the draws of these ids, of any shape."""
    data = ids.to("cpu", torch.int32).numpy().astype("<i4").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
