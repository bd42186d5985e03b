"""What is known of the request that is being answered: its id, its deadline, what it cost.

For: what every protocol has and none should pass on by hand; it follows a request's tasks.
Not for: what was asked (`miudo.serve.answering.Ask`); prompts and keys never come here.
Read next: `miudo.serve.watch`.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["Errand", "begin_errand", "current_errand"]


@dataclass(eq=False)
class Errand:
    """One request. `ends` is when it must be over, by the monotonic clock; None: never.

    `over` is False while it is answered: what it uses is kept for it so long.
    """

    id: str = ""
    ends: float | None = None
    model: str | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0
    first_token_s: float | None = None
    over: bool = True

    def left_s(self, wanted: float | None) -> float | None:
        """Returns the seconds left, at most `wanted`; None without any bound."""
        left = None if self.ends is None else max(0.0, self.ends - time.monotonic())
        bounds = [bound for bound in (left, wanted) if bound is not None]
        return min(bounds) if bounds else None


_CURRENT: ContextVar[Errand] = ContextVar("errand")


def begin_errand(errand: Errand) -> None:
    """Makes `errand` that of this task and of those that it starts, until it is made `over`."""
    errand.over = False
    _CURRENT.set(errand)


def current_errand() -> Errand:
    """Returns this task's errand; one that nobody looks at where there is none."""
    return _CURRENT.get(Errand())
