"""The one thread that runs an engine, and the one queue before it.

For: requests from many clients that share steps: they join and leave between two of them, and
each gets the tokens that it would get alone.
Not for: which step comes next (`miudo.engine.scheduler`) or text (`miudo.serve.answering`).
Read next: `miudo.serve.answering`.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from miudo.engine.batches import Limits, Plan, Progress, Request, carry_out
from miudo.engine.scheduler import Scheduler
from miudo.errors import BusyError, ClosingError, DeadlineError, MiudoError
from miudo.meter import Energy
from miudo.protocol import Engine
from miudo.serve.energy import EnergyBook
from miudo.serve.figures import Latencies

__all__ = ["Load", "Post", "Sink", "Worker"]

_T = TypeVar("_T")
_FEW = 64
_HELD_S = 0.002  # to wake the loop and a client costs as much as a small model's step

Sink = Callable[[Progress | MiudoError], None]
"""Is given a request's news, in order; an error is the last of them."""

Post = Callable[[Callable[[], None]], None]
"""Runs a function where sinks may be called, such as `loop.call_soon_threadsafe`."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much there is to do now, and how much was done since the start.

    `energy_j` is an estimate unless `energy_measured`.
    """

    waiting: int
    running: int
    pages_used: int
    pages: int
    steps: int
    prompt_tokens: int
    new_tokens: int
    reused_tokens: int
    preempted: int
    energy_j: float
    energy_measured: bool


class Worker:
    """Runs `engine` on a thread of its own under `limits`.

    `max_waiting` requests wait beside those that run; one more is refused with BusyError. News
    of one step reach `post` as one function, and those of short steps together: a token waits for
    the next ones while these should be there within 2 ms, if the next step is as long as the last
    was, an answer's first and last token for none. A longer step delays what is held by itself.
    Methods may be called from any thread; `latencies` belong to the thread that answers.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        *,
        max_waiting: int = 64,
        post: Post = lambda deliver: deliver(),
    ) -> None:
        self.engine, self.limits, self.latencies = engine, limits, Latencies()
        self._most = limits.max_sequences + max_waiting
        self._post = post
        self._scheduler = Scheduler(limits)
        self._conversations: dict[int, int] = {}
        self._sinks: dict[int, Sink] = {}
        self._silent = set[int]()  # who has heard nothing yet
        self._held: list[tuple[Sink, Progress]] = []
        self._held_since = 0.0
        self._deadlines: list[tuple[float, int]] = []
        self._wake = threading.Condition()
        self._orders: deque[Callable[[], None]] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._closing: float | None = None  # when what is left is given up
        self._failure: BaseException | None = None
        self._numbers = self._open = self._calls_open = 0
        self._steps = self._read = self._drawn = 0
        self._energy = EnergyBook()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are worked on; False for good after the engine failed."""
        return self._failure is None and self._thread.is_alive()

    def load(self) -> Load:
        """Returns what is going on; numbers of one moment, but not of one instant."""
        s, energy = self._scheduler, self._energy
        now = (s.waiting, s.running, s.pages_used, self.limits.pages)
        done = (self._steps, self._read, self._drawn, s.reused, s.preempted)
        return Load(*now, *done, energy.energy_j, energy.measured)

    @property
    def busy(self) -> bool:
        """Whether a request or a call waits or runs, or news of one are on their way."""
        return self._open > 0 or self._calls_open > 0

    @property
    def full(self) -> bool:
        """Whether a request would be refused with BusyError."""
        return self._open >= self._most

    def next_number(self) -> int:
        """Returns a number for a request that no other has."""
        with self._wake:
            self._numbers += 1
            return self._numbers

    def submit(self, request: Request, sink: Sink, *, deadline_s: float | None = None) -> None:
        """Takes a request in; its news come to `sink`. `deadline_s` counts from now.

        Raises BusyError where too many wait or the server closes. A request that could never run
        is told so through its sink.
        """
        end = None if deadline_s is None else time.monotonic() + deadline_s

        def take() -> None:
            try:
                self._scheduler.submit(request)
            except MiudoError as error:
                self._count(-1)
                told = error  # the name `error` ends with this block, the call comes later
                self._post(lambda: sink(told))
                return
            self._sinks[request.number] = sink
            self._silent.add(request.number)
            self._read += len(request.prompt)
            if end is not None:
                self._push_deadline(end, request.number)

        with self._wake:
            if not self.alive or self._closing is not None:
                raise ClosingError("the model closes", remedy="Ask again in a moment")
            if self.full:
                raise BusyError(
                    f"{self._open} requests wait or run, as many as are taken",
                    remedy="Try again in a moment",
                )
            self._open += 1
            self._orders.append(take)
            self._wake.notify()

    def cancel(self, number: int) -> None:
        """Ends a request whose news nobody wants any more; one that has ended is no error."""
        self._order(lambda: self._drop(number))

    def call(self, work: Callable[[Engine], _T], *, positions: int = 0) -> Future[_T]:
        """Runs `work` on the engine between two steps; what it raises is the future's.

        Room is made in the cache for the `positions` that it takes in; BusyError is the future's
        where requests that run have it. Every request waits meanwhile: long work is to be cut in
        pieces. One call runs between two steps, whoever called first.
        """
        future: Future[_T] = Future()

        def run() -> None:
            self._tell_held()  # work may last
            try:
                if future.set_running_or_notify_cancel():
                    self._make_room(positions)
                    future.set_result(work(self.engine))
            except Exception as error:  # noqa: BLE001 - the caller's, raised where it waits
                future.set_exception(error)
            finally:
                with self._wake:
                    self._calls_open -= 1

        with self._wake:
            alive = self.alive
            if alive:
                self._calls_open += 1
                self._calls.append(run)
                self._wake.notify()
        if not alive:
            future.set_exception(ClosingError("the model closes"))
        return future

    def close(self, drain_s: float = 0.0) -> None:
        """Takes no more requests, gives those that run `drain_s` to end, waits for the thread."""
        with self._wake:
            self._closing = time.monotonic() + drain_s
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _order(self, order: Callable[[], None]) -> None:
        with self._wake:
            if self.alive:
                self._orders.append(order)
                self._wake.notify()

    def _count(self, change: int) -> None:
        with self._wake:
            self._open += change

    # What follows runs on the engine's thread alone.

    def _run(self) -> None:
        try:
            while self._turn():
                pass
            self._give_up(ClosingError("the server closed before the answer was whole"))
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            self._failure = error
            self._give_up(MiudoError(f"the engine failed ({type(error).__name__})"))

    def _turn(self) -> bool:
        """Does what was ordered and one step; returns False when it is time to end."""
        if not self._busy():
            self._tell_held()
        for order in self._take_orders():
            order()
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            number = heapq.heappop(self._deadlines)[1]
            if number in self._sinks:
                self._fail(number, DeadlineError("the time given for the answer is over"))
        if self._closing is not None and (not self._sinks or now >= self._closing):
            return False
        self._step()
        return True

    def _push_deadline(self, end: float, number: int) -> None:
        """Most requests end long before: theirs are thrown out when they are the most."""
        if len(self._deadlines) > 2 * len(self._sinks) + _FEW:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._sinks]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (end, number))

    def _take_orders(self) -> list[Callable[[], None]]:
        with self._wake:
            while not (self._orders or self._calls or self._busy() or self._closing is not None):
                self._wake.wait()
            orders = list(self._orders)
            self._orders.clear()
            if self._calls:
                orders.append(self._calls.popleft())
            return orders

    def _busy(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def _make_room(self, positions: int) -> None:
        changes = self._scheduler.make_room(positions)
        if changes:
            carry_out(self.engine, Plan(changes, (), ()), self._conversations)

    def _step(self) -> None:
        begun = time.monotonic()
        plan = self._scheduler.plan()
        if not (plan.work or plan.changes or plan.failed):
            return
        if sum(len(work.ids) for work in plan.work) > len(plan.work):
            self._tell_held()  # prompts are read: a long step
        self._energy.begin()
        try:
            outs = carry_out(self.engine, plan, self._conversations)
        except MiudoError as error:
            self._blame(plan.numbers, error)
            return
        self._steps += 1
        if plan.work:
            takes = [len(work.ids) for work in plan.work]
            self._energy.end(list(zip(plan.numbers, takes, strict=True)))
        news = self._scheduler.settle(outs)
        self._drawn += sum(len(progress.tokens) for progress in news)
        self._deliver(news, begun)
        for number, refused in plan.failed:
            if number in self._sinks:
                self._fail(number, refused)

    def _blame(self, numbers: tuple[int, ...], error: MiudoError) -> None:
        """The youngest goes: with fewer the next step may do, and it is the last to be blamed."""
        if not numbers:
            raise error
        self._fail(numbers[-1], error)

    def _deliver(self, news: list[Progress], begun: float) -> None:
        """Tells the news of a step that began at `begun`, or holds them for the next one's."""
        now = time.monotonic()
        if not self._held:
            self._held_since = now
        # As if the next step lasted as long as this one did, what was planned for it included.
        urgent = now + (now - begun) > self._held_since + _HELD_S
        for progress in news:
            number = progress.number
            if (sink := self._sinks.get(number)) is None:
                continue
            self._held.append((sink, _measured(progress, self._energy.of(number), now)))
            if progress.finish_reason or number in self._silent:
                urgent = True
            self._silent.discard(number)
            if progress.finish_reason:
                del self._sinks[number]
                self._energy.forget(number)
                self._count(-1)
        if urgent:
            self._tell_held()

    def _tell_held(self) -> None:
        if self._held:
            calls, self._held = self._held, []
            self._post(lambda: _tell(calls))

    def _fail(self, number: int, error: MiudoError) -> None:
        sink = self._sinks[number]
        self._drop(number)
        self._tell_held()
        self._post(lambda: sink(error))

    def _drop(self, number: int) -> None:
        self._scheduler.stop(number)
        self._energy.forget(number)
        self._silent.discard(number)
        if self._sinks.pop(number, None) is not None:
            self._count(-1)

    def _give_up(self, error: MiudoError) -> None:
        self._tell_held()
        with self._wake:
            orders, sinks = [*self._orders, *self._calls], list(self._sinks.values())
            self._orders.clear()
            self._calls.clear()
            self._sinks.clear()
            if self._closing is None:
                self._closing = time.monotonic()
            # Still under the lock: what is ordered from now on is told that nobody does it.
            self._failure = self._failure or error
        for order in orders:  # a submit gets its sink, a call its answer
            order()
        sinks += self._sinks.values()
        if sinks:
            calls: list[tuple[Sink, Any]] = [(sink, error) for sink in sinks]
            self._post(lambda: _tell(calls))


def _measured(progress: Progress, energy: Energy, at: float) -> Progress:
    """What `dataclasses.replace` would return, in a fifth of its time."""
    tokens, reason, logprobs = progress.tokens, progress.finish_reason, progress.logprobs
    logits, reused = progress.logits, progress.reused
    return Progress(progress.number, tokens, reason, logprobs, logits, energy, reused, at)


def _tell(calls: Sequence[tuple[Sink, Any]]) -> None:
    for sink, item in calls:
        sink(item)
