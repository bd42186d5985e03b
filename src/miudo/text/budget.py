"""What one rendering of a chat template may use, counted down.

For: `miudo.text.sandbox`.
Not for: what a template may reach.
Read next: `miudo.text.sandbox`.
"""

from __future__ import annotations

import time
from typing import NoReturn

from miudo.errors import RequestError

__all__ = ["Budget", "refuse"]


class Budget:
    """What one rendering may still use: steps, seconds of processor time, characters at once."""

    def __init__(self, *, steps: int, seconds: float, chars: int) -> None:
        self.chars = chars
        self._steps = steps
        self._written = 0
        self._seconds = seconds
        self._deadline = time.thread_time() + seconds
        self._paused = False

    def step(self) -> None:
        """Counts one loop turn or call. Raises RequestError when steps or time are used up.

        Time is given a second time, once: Python's collector may have taken the first, in a
        process with many objects, and counts as ours.
        """
        self._steps -= 1
        now = time.thread_time()
        if self._steps >= 0 and now > self._deadline and not self._paused:
            self._paused, self._deadline = True, now + self._seconds
        if self._steps < 0 or now > self._deadline:
            refuse("the chat template runs too long")

    def fits(self, size: int) -> None:
        """Raises RequestError for a string or list larger than the budget."""
        self.step()
        if size > self.chars:
            refuse(f"the chat template makes more than {self.chars} characters")

    def write(self, size: int) -> None:
        """Counts printed characters, those inside macros too: nested macros double them."""
        self._written += size
        self.fits(self._written)


def refuse(what: str) -> NoReturn:
    """Raises RequestError: the template does `what` it may not."""
    raise RequestError(what, where="chat template")
