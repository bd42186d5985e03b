"""Ctrl-C and SIGTERM while training: finish the step, save, then stop; the second time now.

For: leaving a state that `--resume` goes on from.
Not for: `kill -9`, after which the newest checkpoint holds (`miudo.train.checkpoint`).
Read next: `miudo.train.loop`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopRequest", "StoppedError", "stop_request"]


class StoppedError(KeyboardInterrupt):
    """A run was asked to stop and saved its state; the caller exits with `exit_code`."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest:
    """Remembers the first signal; the second raises StoppedError at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handles one signal."""
        if self.signal_number is not None:
            raise StoppedError("stopped at once; the newest checkpoint holds", number)
        self.signal_number = number


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Yields a request that SIGINT and SIGTERM fill in; handlers are put back at the end.

    Outside the main thread Python delivers no signals: the request then stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {
        number: signal.signal(number, request.receive) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
