"""What the small model may take and must give, and which of several models come out ahead.

For: holding figures against a budget, the Pareto front, and rank correlation.
Not for: measuring or predicting the figures (`miudo.shrink.forecast`, `miudo.shrink.measure`).
Read next: `miudo.shrink.candidates`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from miudo.errors import ConfigError

__all__ = [
    "Budget",
    "Figures",
    "Prefer",
    "Shortfall",
    "enough_for",
    "pareto_front",
    "spearman",
]

T = TypeVar("T")


class Prefer(StrEnum):
    """What decides between models that all meet the budget."""

    QUALITY = "quality"
    SIZE = "size"
    SPEED = "speed"


@dataclass(frozen=True, slots=True)
class Figures:
    """One model's figures. `ppl_increase` is a share: 0.05 is five per cent above the teacher."""

    size_bytes: float
    tokens_per_s: float
    ppl_increase: float
    energy_j: float | None = None

    def preferred(self, prefer: Prefer) -> float:
        """Returns the figure that decides, the smaller the better."""
        if prefer is Prefer.SIZE:
            return self.size_bytes
        return self.ppl_increase if prefer is Prefer.QUALITY else -self.tokens_per_s


@dataclass(frozen=True, slots=True)
class Shortfall:
    """One limit that was not kept; `share` is by how much of the limit, `found` None if unknown."""

    limit: str
    allowed: float
    found: float | None
    share: float
    text: str


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits; None is no limit. Speed is of new tokens, energy is a new token's.

    Raises ConfigError for no limit at all, or one that is no positive number.
    """

    max_size_bytes: int | None = None
    min_tokens_per_s: float | None = None
    max_ppl_increase: float | None = None
    max_energy_j: float | None = None

    def __post_init__(self) -> None:
        limits = {
            "--max-size": self.max_size_bytes,
            "--min-speed": self.min_tokens_per_s,
            "--max-ppl-increase": self.max_ppl_increase,
            "--energy": self.max_energy_j,
        }
        if all(value is None for value in limits.values()):
            raise ConfigError(
                "there is no budget to aim at", remedy=f"Give one of {', '.join(limits)}"
            )
        for name, value in limits.items():
            lowest = 0.0 if name == "--max-ppl-increase" else math.ulp(0.0)
            if value is not None and not lowest <= value < math.inf:
                raise ConfigError(f"the limit is {value!r}", where=name, remedy="Give one above 0")

    def shortfalls(self, figures: Figures) -> tuple[Shortfall, ...]:
        """Returns the limits that `figures` break; a figure that is unknown breaks its limit."""
        found = []
        size, speed = self.max_size_bytes, self.min_tokens_per_s
        worse, energy = self.max_ppl_increase, self.max_energy_j
        if size is not None and figures.size_bytes > size:
            text = (
                f"{_mb(figures.size_bytes)}, {_mb(figures.size_bytes - size)} over the "
                f"{_mb(size)} that --max-size allows"
            )
            share = figures.size_bytes / size - 1.0
            found.append(Shortfall("--max-size", size, figures.size_bytes, share, text))
        if speed is not None and figures.tokens_per_s < speed:
            text = (
                f"{figures.tokens_per_s:,.1f} tokens/s, {speed - figures.tokens_per_s:,.1f} under "
                f"the {speed:,.1f} that --min-speed asks for"
            )
            share = speed / max(figures.tokens_per_s, 1e-12) - 1.0
            found.append(Shortfall("--min-speed", speed, figures.tokens_per_s, share, text))
        if worse is not None and figures.ppl_increase > worse:
            text = (
                f"perplexity {figures.ppl_increase:+.2%}, "
                f"{(figures.ppl_increase - worse) * 100:.2f} points over the {worse:.2%} that "
                "--max-ppl-increase allows"
            )
            share = (1.0 + figures.ppl_increase) / (1.0 + worse) - 1.0
            found.append(Shortfall("--max-ppl-increase", worse, figures.ppl_increase, share, text))
        used = figures.energy_j
        if energy is not None and used is None:
            text = "energy was not measured, and --energy sets a limit"
            found.append(Shortfall("--energy", energy, None, 1.0, text))
        elif energy is not None and used is not None and used > energy:
            text = f"{used * 1e3:.2f} mJ a token, --energy allows {energy * 1e3:.2f} mJ"
            found.append(Shortfall("--energy", energy, used, used / energy - 1.0, text))
        return tuple(found)

    def rank(self, figures: Figures, prefer: Prefer) -> tuple[float, float]:
        """Returns a key to sort by: how far from the budget in all, then what is preferred."""
        return (
            sum(shortfall.share for shortfall in self.shortfalls(figures)),
            figures.preferred(prefer),
        )

    def describe(self) -> str:
        """Returns the limits as one line."""
        parts = []
        if self.max_size_bytes is not None:
            parts.append(f"at most {_mb(self.max_size_bytes)}")
        if self.min_tokens_per_s is not None:
            parts.append(f"at least {self.min_tokens_per_s:,.6g} new tokens/s")
        if self.max_ppl_increase is not None:
            limit = f"{self.max_ppl_increase * 100:.6g}%"
            parts.append(f"perplexity at most {limit} above the teacher's")
        if self.max_energy_j is not None:
            parts.append(f"at most {self.max_energy_j * 1e3:.6g} mJ a token")
        return ", ".join(parts)


def enough_for(size_bytes: float) -> str:
    """Returns a --max-size that allows so many bytes, rounded up to the next kB."""
    # Above even where they are whole kB: 1.001 MB read back is a byte less.
    return f"{(size_bytes // 1000 + 1) / 1000:.3f}MB"


def pareto_front(items: Sequence[T], figures: Callable[[T], Figures]) -> list[T]:
    """Returns those of `items` that no other beats in size, speed and quality together.

    One beats another if it is no worse in all three and better in one. Equals all stay.
    """

    def costs(item: T) -> tuple[float, float, float]:
        found = figures(item)
        return found.size_bytes, -found.tokens_per_s, found.ppl_increase

    listed = [(item, costs(item)) for item in items]

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(
            other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            for _, other in listed
        )

    return [item for item, mine in listed if not beaten(mine)]


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Returns the rank correlation of Spearman (1904), ties at their mean rank.

    None for fewer than three pairs, or where all of one side are equal: no ranking is there.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} values are no pairs")
    if len(x) < 3:
        return None
    a, b = _ranks(x), _ranks(y)
    mean = (len(x) + 1) / 2
    da, db = [v - mean for v in a], [v - mean for v in b]
    spread = math.sqrt(sum(v * v for v in da) * sum(v * v for v in db))
    return sum(p * q for p, q in zip(da, db, strict=True)) / spread if spread else None


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    # The mean of the places that equal values take, from 1.
    return [order.index(v) + (order.count(v) + 1) / 2 for v in values]


def _mb(size: float) -> str:
    return f"{size / 1e6:,.2f} MB"
