"""How the server stands: whether it opens, serves, drains or has failed, and how busy it is.

For: one answer for `/health`, `/ready`, the guard, and the process that waits to end.
Not for: one model's load (`miudo.serve.worker.Worker.load`).
Read next: `miudo.serve.lifetime`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Phase", "Standing"]

Phase = Literal["loading", "ready", "draining", "failed"]


@dataclass
class Standing:
    """Read and written on the event loop alone. `open` are requests that have no answer yet.

    `answers` counts (path, status); paths that are in no table are one.
    """

    phase: Phase = "loading"
    open: int = 0
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
