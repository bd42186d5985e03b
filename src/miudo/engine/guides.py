"""Draws that hang on what was drawn before: penalties, and grammars.

For: `miudo.engine.batches.Request.guide`.
Not for: settings that stay the same for a whole text (`miudo.protocol.SamplingSettings`).
Read next: `miudo.engine.batches`.

Shapes: V vocab_size.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from miudo.protocol import SamplingSettings

__all__ = ["Grammar", "Guided", "Penalties"]

_Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Penalties:
    """Subtracted from the logits of tokens drawn before: once each, and for every time."""

    presence: float = 0.0
    frequency: float = 0.0


class Grammar(Protocol):
    """What may follow, by a formal language over tokens."""

    def mask(self) -> _Mask:
        """Returns bool [V], True for ids that may be drawn."""
        ...

    def take(self, token: int) -> bool:
        """Takes in a token; returns whether nothing can follow it."""
        ...


class Guided:
    """The `Guide` of one request: penalties, a grammar, or both, over its own settings.

    `mask` is laid over a grammar's: rows of the vocabulary that are no tokens.
    """

    def __init__(
        self,
        sampling: SamplingSettings,
        *,
        penalties: Penalties | None = None,
        grammar: Grammar | None = None,
        mask: _Mask | None = None,
    ) -> None:
        self._sampling, self._grammar, self._mask = sampling, grammar, mask
        self._penalties = penalties or Penalties()
        self._drawn: Counter[int] = Counter()

    def choice(self) -> tuple[SamplingSettings, _Mask | None]:
        """Returns settings and mask of the next draw."""
        mask = self._mask
        if self._grammar is not None:
            allowed = self._grammar.mask()
            mask = allowed if mask is None else allowed & mask
        return self._settings(), mask

    def take(self, token: int) -> bool:
        """Counts `token`; returns whether the grammar is through."""
        self._drawn[token] += 1
        return self._grammar is not None and self._grammar.take(token)

    def _settings(self) -> SamplingSettings:
        p = self._penalties
        if not self._drawn or not (p.presence or p.frequency):
            return self._sampling
        biases = dict(self._sampling.logit_bias)
        for token, times in self._drawn.items():
            biases[token] = biases.get(token, 0.0) - p.presence - p.frequency * times
        limited = tuple((token, max(-1e4, min(1e4, bias))) for token, bias in biases.items())
        return dataclasses.replace(self._sampling, logit_bias=limited)
