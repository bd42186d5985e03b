"""The models that are served, by name: opened when they are asked for, closed when they idle.

For: finding the model that a request names, within a budget of memory.
Not for: one model's running (`miudo.serve.hosted`).
Read next: `miudo.serve.hosted`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from miudo.errors import BusyError, DeadlineError, MissingError, ResourceError
from miudo.serve.errand import Errand, current_errand
from miudo.serve.fields import FieldError, Fields
from miudo.serve.hosted import Hosted

__all__ = ["Holding", "House", "Offer", "ShelfEntry", "model_field"]


class Offer(Protocol):
    """A model that could be opened."""

    @property
    def planned_bytes(self) -> int:
        """What it will take at most: weights, and keys and values."""
        ...

    def open(self) -> tuple[Hosted, ...]:
        """Returns the model, and one for each of its adapters; called on a thread of its own."""
        ...


@dataclass(frozen=True, slots=True)
class Holding:
    """`memory_bytes` bounds what open models take together, None: by what the machine has free.

    Models that were opened on demand are closed after `keep_alive_s` without a request.
    """

    memory_bytes: int | None = None
    keep_alive_s: float = 300.0


@dataclass(frozen=True, slots=True)
class ShelfEntry:
    """A model's name, whether it is open, and the bytes that it takes or would take."""

    name: str
    status: Literal["loaded", "unloaded", "failed"]
    planned_bytes: int


@dataclass(eq=False)
class _Open:
    hosted: tuple[Hosted, ...]  # the model, then its adapters
    planned_bytes: int
    used: float
    errands: set[Errand] = field(default_factory=set)

    def use(self) -> None:
        """Keeps the model open until the request that is being answered is over."""
        self.used = time.monotonic()
        if not (errand := current_errand()).over:
            self.errands.add(errand)

    @property
    def busy(self) -> bool:
        """Whether a request has it; one that was found and asks only later has it already."""
        self.errands = {errand for errand in self.errands if not errand.over}
        return bool(self.errands) or self.hosted[0].worker.busy


def model_field(fields: Fields) -> str | None:
    """Returns the model that a request names. Raises FieldError where it is no text."""
    value = fields.take("model", type="string")
    if value is not None and not isinstance(value, str):
        raise FieldError("model", f"is {value!r:.60}", remedy="Give a model's name")
    return value


class House:
    """Holds models; `kept` are opened at the start and stay.

    The first of them is taken where a request names none. `find` returns what else may be opened
    by name, or None; `free_bytes` what the machine has free. Methods run on the event loop alone.
    """

    def __init__(
        self,
        kept: Mapping[str, Offer],
        holding: Holding | None = None,
        *,
        find: Callable[[str], Offer | None] | None = None,
        free_bytes: Callable[[], int],
    ) -> None:
        self._kept, self._find, self._free_bytes = dict(kept), find, free_bytes
        self._holding = holding or Holding()
        self._open: dict[str, _Open] = {}
        self._opening = asyncio.Lock()
        self._tasks = set[asyncio.Future[None]]()

    @property
    def models(self) -> tuple[Hosted, ...]:
        """Returns the models that are open, each before its adapters, first one first."""
        return tuple(hosted for held in self._open.values() for hosted in held.hosted)

    @property
    def full(self) -> bool:
        """Whether whatever model a request names would refuse it for those that wait."""
        workers = [held.hosted[0].worker for held in self._open.values()]
        could_open = self._find is not None or not self._kept.keys() <= self._open.keys()
        return bool(workers) and not could_open and all(worker.full for worker in workers)

    @property
    def shelf(self) -> tuple[ShelfEntry, ...]:
        """Returns the models that are open or were given at the start."""
        entries = []
        for name in {**self._kept, **self._open}:
            held = self._open.get(name)
            planned = self._kept[name].planned_bytes if held is None else held.planned_bytes
            status: Literal["loaded", "unloaded", "failed"] = "unloaded"
            if held is not None:
                status = "loaded" if held.hosted[0].worker.alive else "failed"
            entries.append(ShelfEntry(name, status, planned))
        return tuple(entries)

    def idle_left_s(self, hosted: Hosted) -> float | None:
        """Returns after how many seconds without a request a model closes; None: it stays."""
        for name, held in self._open.items():
            if hosted in held.hosted and name not in self._kept:
                left = held.used + self._holding.keep_alive_s - time.monotonic()
                return max(0.0, left)
        return None

    async def start(self) -> None:
        """Opens the models that are kept. Raises what opening raises."""
        for name in self._kept:
            await self.load(name)

    async def named(self, fields: Fields) -> Hosted:
        """Returns the model of a request's field `model`, opened if need be.

        Raises FieldError where it is no text, and what `get` raises.
        """
        return await self.get(model_field(fields))

    async def get(self, name: str | None) -> Hosted:
        """Returns the model called `name`, or MODEL:ADAPTER, or an adapter's name alone.

        None is the first of those that are kept.

        Raises MissingError where there is none, ResourceError where memory does not suffice.
        """
        errand, name = current_errand(), next(iter(self._kept)) if name is None else name
        if self._among_open(name) is None:
            base = name if self._offer(name) else name.rpartition(":")[0]
            try:
                async with asyncio.timeout(errand.left_s(None)):
                    await self.load(base or name)
            except TimeoutError as error:
                raise DeadlineError("the time given is over, and the model opens") from error
        found = self.opened(name)
        errand.model = found.name
        return found

    def opened(self, name: str) -> Hosted:
        """Returns the model of that name if it is open. Raises MissingError."""
        found = self._among_open(name)
        if found is None:
            raise self._unknown(name)
        return found

    async def load(self, name: str) -> None:
        """Opens a model; one that is open is no error. Others that idle make room for it.

        Whoever waits may leave: what has begun to open is opened. Raises MissingError,
        ResourceError, and what opening raises.
        """
        task = asyncio.ensure_future(self._load(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def _load(self, name: str) -> None:
        async with self._opening:
            if (held := self._open.get(name)) is not None:
                held.use()
                return
            offer = self._offer(name)
            if offer is None:
                raise self._unknown(name)
            self._make_room(name, offer.planned_bytes)
            hosted = await asyncio.to_thread(offer.open)
            self._open[name] = held = _Open(hosted, offer.planned_bytes, time.monotonic())
            held.use()  # at once: whoever waits for memory comes next

    def unload(self, name: str) -> None:
        """Closes a model. Raises MissingError if it is not open, BusyError while it works."""
        if name not in self._open:
            raise self._unknown(name)
        if self._open[name].busy:
            raise BusyError(f"{name} works for somebody", remedy="Ask again in a moment")
        self._close(name)

    def close_idle(self) -> None:
        """Closes what was opened on demand and has idled as long as it may."""
        now = time.monotonic()
        for name, held in list(self._open.items()):
            if held.busy:
                held.used = now
            elif name not in self._kept and now - held.used >= self._holding.keep_alive_s:
                self._close(name)

    def close(self, drain_s: float = 0.0) -> None:
        """Lets every model's requests end, within `drain_s` seconds."""
        for held in self._open.values():
            held.hosted[0].worker.close(drain_s)

    def _among_open(self, name: str) -> Hosted | None:
        for held in self._open.values():
            for hosted in held.hosted:
                if name in (hosted.name, hosted.loaded.adapter):
                    held.use()
                    return hosted
        return None

    def _offer(self, name: str) -> Offer | None:
        if name in self._kept or self._find is None:
            return self._kept.get(name)
        return self._find(name)

    def _make_room(self, name: str, wanted: int) -> None:
        """Closes idle models, longest unused first, until `wanted` bytes are free."""
        budget = self._holding.memory_bytes
        while True:
            taken = sum(held.planned_bytes for held in self._open.values())
            free = self._free_bytes() if budget is None else budget - taken
            if wanted <= free:
                return
            idle = [n for n, held in self._open.items() if n not in self._kept and not held.busy]
            if not idle:
                raise ResourceError(
                    f"{name[:100]} takes up to {wanted >> 20} MiB, {max(0, free) >> 20} are free",
                    remedy="Unload another model, or give the server a larger --memory",
                )
            self._close(min(idle, key=lambda n: self._open[n].used))

    def _close(self, name: str) -> None:
        self._open.pop(name).hosted[0].worker.close()

    def _unknown(self, name: str) -> MissingError:
        served = ", ".join(hosted.name for hosted in self.models) or ", ".join(self._kept)
        return MissingError(f"no model is called {name!r:.100}", remedy=f"Served are {served}")
