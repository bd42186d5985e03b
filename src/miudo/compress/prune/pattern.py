"""Which weights of a matrix go: a share of all, or all but N of every M along a row.

For: one description of a sparsity pattern, and the mask that it makes of any score.
Not for: the scores (`miudo.compress.prune.scores`) or what is stored of a sparse matrix.
Read next: `miudo.compress.prune.scores`.

Shapes: O outputs, I inputs of a matrix; masks are bool [O, I], True where a weight goes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from miudo.errors import ConfigError

__all__ = ["Pattern", "lowest"]

_LARGEST_GROUP = 64
_N_OF_M = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True, slots=True)
class Pattern:
    """`share` of the weights are zero; with `group` M, the same number in every M of a row."""

    share: float
    group: int | None = None

    @classmethod
    def parse(cls, text: object) -> Self:
        """Returns the pattern "0.5" (a share of zeros) or "2:4" (2 of every 4 may stay).

        Raises ConfigError for anything else, and for shares of nothing or all.
        """
        if isinstance(text, str):
            if found := _N_OF_M.fullmatch(text):
                kept, group = int(found[1]), int(found[2])
                if 1 <= kept < group <= _LARGEST_GROUP:
                    return cls(1.0 - kept / group, group)
            elif (share := _number(text)) is not None and 0.0 < share < 1.0:
                return cls(share)
        raise ConfigError(
            f"pattern is {text!r}",
            remedy="Give a share of zeros above 0 and below 1, as 0.5, or N:M, as 2:4",
        )

    def check_fits(self, name: str, inputs: int) -> None:
        """Raises ConfigError where rows of `inputs` are no whole groups of M."""
        if self.group is not None and inputs % self.group:
            raise ConfigError(
                f"rows of {inputs} are no whole groups of {self.group}",
                where=name,
                remedy="Give a share of zeros instead",
            )

    def mask(self, scores: Tensor, *, by_row: bool) -> Tensor:
        """Returns where the lowest `scores` [O, I] lie; a share is of each row or of all.

        Equal scores go from the left, on every machine alike.
        """
        rows, inputs = scores.shape
        if self.group is not None:
            groups = scores.reshape(-1, self.group)
            count = self.group - round(self.group * (1.0 - self.share))
            return lowest(groups, count).reshape(rows, inputs)
        if by_row:
            return lowest(scores, round(self.share * inputs))
        return lowest(scores.reshape(1, -1), round(self.share * rows * inputs)).reshape(
            rows, inputs
        )


def lowest(scores: Tensor, count: int) -> Tensor:
    """Returns bool [R, C], True at the `count` lowest of each row, the first of equals."""
    order = torch.argsort(scores, dim=1, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, value=True)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
