"""From the socket to the exit: what signals do, when the server stops, and with which result.

For: SIGTERM, SIGINT and SIGHUP, which let running requests end; an engine that failed.
Not for: what is answered meanwhile (`miudo.serve.guard`).
Read next: `miudo.serve.run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType

import uvicorn

from miudo.errors import MiudoError
from miudo.serve.house import House
from miudo.serve.logs import Log
from miudo.serve.standing import Standing

__all__ = ["Lifetime"]

_INTERRUPTED = 130
_LOGGED_S = 0.05  # for the log to write what waits, at the second signal
_TOLD_S = 1.0  # how long a failed server stays, so that whoever asks for its health hears of it


class Lifetime(uvicorn.Server):
    """Opens the models, says `ready`, and ends: at a signal, or when an engine fails.

    After the first signal it answers 503 to new requests, on open and on new connections, until
    those that run have ended or `drain_s` are over. The second ends the process at once.
    `failure` is what it ended of, None after a signal.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        house: House,
        standing: Standing,
        log: Log,
        *,
        drain_s: float,
        ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._house, self._standing, self._log = house, standing, log
        self._drain_s, self._ready = drain_s, ready
        self._ends: float | None = None
        self.failure: BaseException | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Takes connections, which hear 503, and begins to open the models."""
        await super().startup(sockets)  # type: ignore[arg-type]
        self._start = asyncio.create_task(self._house.start())
        self._start.add_done_callback(self._started)

    async def on_tick(self, counter: int) -> bool:
        """Looks after the models, ten times a second; returns whether it is time to end."""
        over = await super().on_tick(counter)
        standing, now = self._standing, time.monotonic()
        if standing.phase in ("loading", "ready"):
            self._house.close_idle()
            dead = [hosted.name for hosted in self._house.models if not hosted.worker.alive]
            if dead:
                self._fail(MiudoError(f"the engine of {dead[0]} failed"))
        if self._ends is None:
            return over
        if standing.phase == "failed":
            return now >= self._ends
        return now >= self._ends or (standing.open == 0 and self._start.done())

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Tells what still runs that it is over, and closes."""
        gc.unfreeze()
        self._house.close()
        await super().shutdown(sockets)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Takes the signals; SIGHUP too, unless it is ignored, as nohup wants it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            wanted.append(signal.SIGHUP)
        before = {number: signal.signal(number, self.handle_exit) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to drain, or ends the process."""
        if self._ends is not None:
            time.sleep(_LOGGED_S)  # no lock may be taken here: what is interrupted may hold it
            os._exit(_INTERRUPTED)
        self._ends = time.monotonic() + self._drain_s
        self._standing.phase = "draining"

    def _started(self, start: asyncio.Task[None]) -> None:
        if start.cancelled():
            return
        if (error := start.exception()) is not None:
            self.failure, self._ends = error, time.monotonic()
            self._standing.phase = "failed"
        elif self._standing.phase == "loading":
            self._standing.phase = "ready"
            gc.collect()  # or what is garbage stays too
            gc.freeze()  # what is open stays: to look through it took up to tens of milliseconds
            self._ready()

    def _fail(self, error: MiudoError) -> None:
        self.failure, self._ends = error, time.monotonic() + _TOLD_S
        self._standing.phase = "failed"
        self._log("failed", level="error", message=str(error))
