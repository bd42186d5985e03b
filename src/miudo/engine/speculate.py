"""Several tokens a step without changing one: guess, let the engine check, keep what it would say.

For: one conversation at a time (Leviathan et al. 2023); how long a guess is worth its cost is
decided from what steps have cost and how often guesses held, in this process.
Not for: the guesses themselves (`miudo.engine.drafts`) or the check (`SeqWork.n_drafted`).
Read next: `miudo.engine.generate`.
"""

from __future__ import annotations

import time
from bisect import insort
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from miudo.engine.drafts import Drafter, ModelDrafter, TextDrafter
from miudo.protocol import Engine, SamplingSettings

__all__ = ["LENGTHS", "Agreement", "Costs", "Speculation", "TextSpeculator"]

LENGTHS = (1, 2, 3, 5, 7, 11, 15)
"""How many ids a guess may have: few values, so that each one's cost is soon known; steps of 4, 8
and 16 rows are among them, which kernels like."""

_ROW_COST, _GUESS_COST = 0.05, 0.2
"""Before anything was measured: a further row, and a guessed id of a model, in steps of one row."""
_WINDOW = 64
"""Measurements of a size that count: enough to have some from when the machine was at rest."""
_KEEP = 0.97
"""What is left of old agreement with each new guess: some thirty guesses count."""
_FIRST_PAUSE, _LAST_PAUSE = 32, 512
"""Steps without a guess until one is tried again, doubled each time that it does not pay."""
_ALONE, _FIRST_SPELL, _LAST_SPELL = 3, 16, 256
"""Steps in a row that go without a guess, to see what that costs: at first, and again after 16
others, 32, and so on up to 256. What slows a machine lasts longer than a few steps."""
_LEAST_GAIN = 1.03
"""What a guess must promise: costs are not known better than that."""


@dataclass
class Costs:
    """Seconds by size: lower quartiles of the latest, lines between sizes, `slope` beyond them.

    The lower ones, because whatever disturbs a measurement makes it longer.
    """

    slope: float
    _latest: dict[int, tuple[deque[float], list[float]]] = field(default_factory=dict)
    _quartile: dict[int, float] = field(default_factory=dict)

    def note(self, size: int, seconds: float) -> None:
        """Takes in a measurement."""
        latest, in_order = self._latest.setdefault(size, (deque(), []))
        latest.append(seconds)
        insort(in_order, seconds)
        if len(latest) > _WINDOW:
            in_order.remove(latest.popleft())
        self._quartile[size] = in_order[(len(latest) - 1) // 4]

    def count(self, size: int) -> int:
        """Returns how many measurements of `size` count."""
        return len(self._latest[size][0]) if size in self._latest else 0

    def of(self, size: int) -> float | None:
        """Returns what `size` takes, None before anything was measured."""
        if (known := self._quartile.get(size)) is not None:
            return known
        below = max((s for s in self._quartile if s < size), default=0)
        above = min((s for s in self._quartile if s > size), default=0)
        if below and above:
            share = (size - below) / (above - below)
            return self._quartile[below] + share * (self._quartile[above] - self._quartile[below])
        nearest = below or above
        if not nearest:
            return None
        scale = (1 + self.slope * (size - 1)) / (1 + self.slope * (nearest - 1))
        return scale * self._quartile[nearest]


@dataclass
class Agreement:
    """How often an id that was guessed on some evidence was the one drawn; the old fades."""

    held: float = 1.0
    tried: float = 2.0  # so much weighs the assumption that every other holds
    pause: int = _FIRST_PAUSE
    waited: int = 0

    def note(self, held: int, tried: int) -> None:
        """Takes in that of `tried` ids, each guessed after right ones, `held` were right."""
        self.held = _KEEP * self.held + held
        self.tried = _KEEP * self.tried + tried

    @property
    def rate(self) -> float:
        """The share of ids that are right where those before them are."""
        return min(self.held / self.tried, 0.995)

    def expected(self, length: int) -> float:
        """Returns how many tokens a step gives on average with a guess of `length` ids."""
        return (1 - self.rate ** (length + 1)) / (1 - self.rate)

    def try_again(self) -> bool:
        """Returns whether to guess although it did not pay so far."""
        self.waited += 1
        if self.waited <= self.pause:
            return False
        self.waited, self.pause = 0, min(2 * self.pause, _LAST_PAUSE)
        return True


@dataclass
class Speculation:
    """What was learnt about one engine, from all texts that it wrote.

    `draft_engine` runs a smaller model of the same vocabulary that guesses too.
    """

    draft_engine: Engine | None = None
    clock: Callable[[], float] = time.perf_counter
    steps: Costs = field(default_factory=lambda: Costs(_ROW_COST))
    guesses: Costs = field(default_factory=lambda: Costs(1.0))  # of drafters that are not free
    spell: int = _FIRST_SPELL  # steps with guesses until some go without
    agreement: defaultdict[str, Agreement] = field(default_factory=lambda: defaultdict(Agreement))

    def begin(
        self,
        vocab_size: int,
        sampling: SamplingSettings,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> TextSpeculator:
        """Returns what guesses along a new text; close it. Raises as `ModelDrafter` does."""
        drafters: list[Drafter] = [TextDrafter()]
        if self.draft_engine is not None:
            drafters.append(ModelDrafter(self.draft_engine, vocab_size, sampling, mask))
        return TextSpeculator(self, drafters)

    def choose(self, evidence: str, most: int, *, free: bool) -> tuple[int, float]:
        """Returns the best length of a guess, and by how much it should speed the step up.

        The length is 0 where a guess slows it down, but for a trial now and then.
        """
        alone = self.steps.of(1)
        if alone is None or self.steps.count(1) < _ALONE:
            return 0, 1.0
        agreement = self.agreement[evidence]
        gain, length = max(
            ((self.gain(agreement, k, alone, free=free), k) for k in LENGTHS if k <= most),
            default=(0.0, 0),
        )
        if gain > _LEAST_GAIN:
            agreement.pause = _FIRST_PAUSE
            return length, gain
        return (length if length and agreement.try_again() else 0), 1.0

    def gain(self, agreement: Agreement, length: int, alone: float, *, free: bool) -> float:
        """Returns tokens a second with guesses of `length` over those without."""
        seconds = self.steps.of(length + 1) or alone
        if not free:
            seconds += self.guesses.of(length) or length * _GUESS_COST * alone
        return agreement.expected(length) * alone / seconds


class TextSpeculator:
    """Guesses along one text and learns from what came of it.

    `drafted` and `held` count the ids that were guessed and checked, and those that were right.
    """

    def __init__(self, speculation: Speculation, drafters: Sequence[Drafter]) -> None:
        self._known, self._drafters = speculation, drafters
        self._evidence: str | None = None
        self._guess: Sequence[int] = ()
        self._checked = 0
        self._alone = self._since_alone = 0
        self._start = 0.0
        self.drafted = self.held = 0

    def draft(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """Returns up to `most` ids that are worth checking after `ids`; mostly right, or none."""
        self._evidence, self._guess, self._checked = None, (), 0
        found = [(d, e) for d in self._drafters if (e := d.evidence(ids)) is not None]
        if not found or most < 1:
            self._start = self._known.clock()
            return ()
        choices = [(*self._known.choose(e, most, free=d.free)[::-1], d, e) for d, e in found]
        _, length, drafter, self._evidence = max(choices, key=lambda c: (c[0], c[1]))
        if self._since_alone >= self._known.spell:
            length = 0
        if length:
            start = self._known.clock()
            self._guess = drafter.guess(length)
            if not drafter.free:
                self._known.guesses.note(length, self._known.clock() - start)
        elif drafter.free:  # not to be checked by the engine, but by what comes anyway
            self._guess = drafter.guess(1)
        self._checked = min(length, len(self._guess))
        self._start = self._known.clock()
        return self._guess[: self._checked]

    def learn(self, tokens: Sequence[int]) -> None:
        """Takes in what was drawn with the last draft: the step has just ended."""
        seconds = self._known.clock() - self._start
        self._alone = 0 if self._checked else self._alone + 1
        if self._alone > _ALONE:
            if self._since_alone >= self._known.spell:
                self._known.spell = min(2 * self._known.spell, _LAST_SPELL)
            self._since_alone = 0
        self._since_alone += self._checked > 0
        # The first step alone after other work is slower than those that follow it.
        if self._alone != 1:
            self._known.steps.note(self._checked + 1, seconds)
        held = len(tokens) - 1
        self.drafted += self._checked
        self.held += held
        if self._evidence is None or not self._guess:
            return
        if not self._checked:
            held = int(self._guess[0] == tokens[0])
        tried = min(held + 1, max(self._checked, 1))
        self._known.agreement[self._evidence].note(held, tried)

    def close(self) -> None:
        """Frees what the drafters hold."""
        for drafter in self._drafters:
            drafter.close()
