"""The house: a model that somebody uses stays open, whoever else wants its memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from miudo.errors import BusyError, MiudoError, ResourceError
from miudo.serve.errand import Errand, begin_errand
from miudo.serve.house import Holding, House

_BYTES = 10


@dataclass
class FakeWorker:
    busy: bool = False
    closed: bool = False
    alive: bool = True
    full: bool = False

    def close(self, drain_s: float = 0.0) -> None:
        self.closed = True


@dataclass
class FakeOffer:
    """A model without weights."""

    name: str
    planned_bytes: int = _BYTES
    worker: FakeWorker = field(default_factory=FakeWorker)

    def open(self) -> tuple[Any, ...]:
        time.sleep(0.02)
        loaded = SimpleNamespace(adapter=None)
        return (SimpleNamespace(name=self.name, worker=self.worker, loaded=loaded),)


def house(room: int, *, keep_alive_s: float = 300.0) -> House:
    """Holds up to `room` models, opened on demand."""
    holding = Holding(room * _BYTES, keep_alive_s)
    return House({}, holding, find=FakeOffer, free_bytes=lambda: 0)


async def answered(work: Callable[[Errand], Coroutine[Any, Any, Any]]) -> Any:
    """Runs `work` as a request of its own; returns what it raised, if it did."""
    errand = Errand()
    begin_errand(errand)
    try:
        return await work(errand)
    except MiudoError as error:
        return error
    finally:
        errand.over = True


def test_whoever_opened_a_model_gets_it_though_another_waits_for_its_memory() -> None:
    async def both() -> list[Any]:
        held = house(1)

        async def ask(name: str) -> Any:
            async def work(_: Errand) -> Any:
                found = await held.get(name)
                await asyncio.sleep(0.01)  # a body is read, a prompt is cut into tokens
                assert not found.worker.closed
                return found.name

            return await answered(work)

        tasks = [asyncio.create_task(ask(name)) for name in ("a", "b")]
        return await asyncio.gather(*tasks)

    first, second = asyncio.run(both())
    assert first == "a"
    assert isinstance(second, ResourceError)  # 503, with Retry-After


def test_a_model_stays_until_the_request_that_found_it_is_over() -> None:
    async def used() -> None:
        held = house(1, keep_alive_s=0.0)

        async def work(_: Errand) -> None:
            found = await held.get("a")
            held.close_idle()
            with pytest.raises(BusyError):
                held.unload("a")
            assert not found.worker.closed

        await asyncio.create_task(answered(work))
        held.close_idle()
        assert held.models == ()

    asyncio.run(used())


def test_it_is_full_when_every_model_that_could_be_asked_is() -> None:
    async def look() -> None:
        offers = {name: FakeOffer(name) for name in ("a", "b")}
        kept = House(offers, Holding(9 * _BYTES), free_bytes=lambda: 0)
        assert not kept.full  # nothing is open
        await kept.start()
        offers["a"].worker.full = True
        assert not kept.full
        offers["b"].worker.full = True
        assert kept.full
        kept.unload("b")
        assert not kept.full  # a request for b opens it again
        await kept.load("b")
        assert kept.full
        more = House(offers, Holding(9 * _BYTES), find=FakeOffer, free_bytes=lambda: 0)
        await more.start()
        assert not more.full  # a request may name one that is not open

    asyncio.run(look())
