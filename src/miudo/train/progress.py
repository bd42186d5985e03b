"""What a run says while it runs.

For: a line that is rewritten on a terminal, plain lines elsewhere; both on stderr.
Not for: the log that stays (`miudo.train.metrics`).
Read next: `miudo.train.loop`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import IO, Protocol

__all__ = ["Lines", "Progress", "Silent", "StepReport"]


@dataclass(frozen=True, slots=True)
class StepReport:
    """Where a run stands after `step` of `steps`.

    `loss` is the mean of the steps since the last report, in nats a token; `parts` what a
    loss is made of. `held_out_loss` only after an evaluation.
    """

    step: int
    steps: int
    tokens: int
    loss: float
    tokens_per_s: float
    left_s: float
    parts: dict[str, float] = field(default_factory=dict)
    held_out_loss: float | None = None


class Progress(Protocol):
    """Is told how a run goes on."""

    def report(self, step: StepReport) -> None:
        """A logged step."""
        ...

    def note(self, text: str) -> None:
        """A decision, a sample of text, a skipped step: one thing worth a line."""
        ...


class Silent:
    """Says nothing."""

    def report(self, step: StepReport) -> None:
        """Does nothing."""

    def note(self, text: str) -> None:
        """Does nothing."""


class Lines:
    """Writes to `stream`: one line rewritten in place where it is a terminal."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._open = False

    def report(self, step: StepReport) -> None:
        """Writes step, loss, speed and time left."""
        text = (
            f"step {step.step}/{step.steps}  loss {step.loss:.4f}  "
            f"{step.tokens_per_s:,.0f} tokens/s  {_clock(step.left_s)} left"
        )
        if step.held_out_loss is not None:
            text += f"  held-out {step.held_out_loss:.4f}"
        last = step.step == step.steps or step.held_out_loss is not None
        if self._live:
            self._stream.write(f"\r\x1b[K{text}" + ("\n" if last else ""))
            self._open = not last
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def note(self, text: str) -> None:
        """Writes `text` on lines of its own."""
        self._stream.write(("\n" if self._open else "") + text + "\n")
        self._stream.flush()
        self._open = False


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
