"""The engine's thread: requests beside each other get what they get alone, and all of them end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from miudo.config import ModelConfig
from miudo.engine.batches import Limits, Progress, Request
from miudo.engine.fake import FakeEngine, babble
from miudo.errors import BusyError, DeadlineError, MiudoError, RequestError
from miudo.protocol import SamplingSettings, SeqWork, Want
from miudo.serve.worker import Worker

V = 23
CONFIG = ModelConfig.uniform(
    n_layers=1, d_model=8, n_heads=1, d_ff=8, vocab_size=V, max_positions=60
)
LIMITS = Limits(context=60, pages=64, page_positions=4, max_positions=16, max_sequences=4)


class Sink:
    """Gathers a request's news; `wait` returns when its last came."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.error: MiudoError | None = None
        self.reason: str | None = None
        self.energy: Any = None
        self.at: list[float] = []
        self._done = threading.Event()

    def __call__(self, item: Progress | MiudoError) -> None:
        assert not self._done.is_set(), "news after the last"
        if isinstance(item, MiudoError):
            self.error = item
        else:
            self.tokens += item.tokens
            self.at.append(item.at)
            self.reason, self.energy = item.finish_reason, item.energy
        if self.error or self.reason:
            self._done.set()

    def wait(self) -> Sink:
        assert self._done.wait(20), "the request never ended"
        return self


class Gated:
    """A fake engine that steps only while its gate is open, and can be told to fail."""

    def __init__(self) -> None:
        limits = {"cache_pages": LIMITS.pages, "page_positions": LIMITS.page_positions}
        self.inner = FakeEngine(CONFIG, babble(V), **limits)
        self.gate = threading.Event()
        self.gate.set()
        self.error: BaseException | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def step(self, batch: Any) -> Any:
        if batch:
            assert self.gate.wait(20)
            if self.error is not None:
                raise self.error
        return self.inner.step(batch)


@pytest.fixture
def engine() -> Gated:
    return Gated()


@pytest.fixture
def worker(engine: Gated) -> Iterator[Worker]:
    made = Worker(engine, LIMITS, max_waiting=2)
    yield made
    engine.gate.set()
    made.close()


def ask(worker: Worker, prompt: list[int], n: int = 8, **rest: Any) -> tuple[int, Sink]:
    number, sink = worker.next_number(), Sink()
    deadline = rest.pop("deadline_s", None)
    sampling = SamplingSettings(temperature=1.0, seed=sum(prompt))
    worker.submit(Request(number, prompt, n, sampling, **rest), sink, deadline_s=deadline)
    return number, sink


def test_company_changes_no_token(worker: Worker, engine: Gated) -> None:
    prompts = [[i + 1, 2, 3, *range(i)] for i in range(6)]
    alone = [ask(worker, p)[1].wait().tokens for p in prompts]
    engine.gate.clear()
    sinks = [ask(worker, p)[1] for p in prompts]
    engine.gate.set()
    assert [s.wait().tokens for s in sinks] == alone
    assert all(s.reason == "length" for s in sinks)
    assert worker.load().new_tokens == 6 * 2 * 8


def test_too_many_are_refused_at_once_and_later_ones_taken(worker: Worker, engine: Gated) -> None:
    engine.gate.clear()
    sinks = [ask(worker, [i + 1])[1] for i in range(6)]
    start = time.monotonic()
    with pytest.raises(BusyError, match="6 requests"):
        ask(worker, [1])
    assert time.monotonic() - start < 1.0
    engine.gate.set()
    for sink in sinks:
        sink.wait()
    assert len(ask(worker, [1])[1].wait().tokens) == 8


def test_a_cancelled_request_frees_its_place_and_says_no_more(
    worker: Worker, engine: Gated
) -> None:
    engine.gate.clear()
    asked = [ask(worker, [i + 1], 30) for i in range(6)]
    number, sink = asked[0]
    worker.cancel(number)
    engine.gate.set()
    for _, other in asked[1:]:
        other.wait()
    assert sink.reason is None
    assert sink.error is None
    assert worker.load().running == worker.load().waiting == 0
    assert len(ask(worker, [1])[1].wait().tokens) == 8


def test_tokens_of_short_steps_are_told_together_the_first_and_the_last_at_once(
    engine: Gated,
) -> None:
    told: list[int] = []  # tokens heard after each post
    sink = Sink()

    def post(deliver: Any) -> None:
        deliver()
        told.append(len(sink.tokens))

    worker = Worker(engine, LIMITS, post=post)
    number = worker.next_number()
    worker.submit(Request(number, [1, 2], 50, SamplingSettings()), sink)
    assert len(sink.wait().tokens) == 50
    worker.close()
    assert told[0] == 1
    assert told[-1] == 50
    assert len(told) < 25
    assert len(sink.at) == 50  # each says when it was drawn, not when it was told
    assert sink.at == sorted(set(sink.at))


def test_no_token_of_long_steps_waits_for_another(engine: Gated) -> None:
    real, posts = engine.inner.step, []

    def slow(batch: Any) -> Any:
        time.sleep(0.003)
        return real(batch)

    engine.inner.step = slow  # type: ignore[method-assign]
    worker = Worker(engine, LIMITS, post=lambda deliver: (posts.append(1), deliver())[1])
    number, sink = worker.next_number(), Sink()
    worker.submit(Request(number, [1, 2], 12, SamplingSettings()), sink)
    sink.wait()
    worker.close()
    assert len(posts) == 12


def test_no_token_of_long_plans_waits_for_another(engine: Gated) -> None:
    class Slow:
        def choice(self) -> tuple[SamplingSettings, Any]:
            time.sleep(0.003)  # a mask
            return SamplingSettings(), None

        def take(self, token: int) -> bool:
            return False

    posts = []
    worker = Worker(engine, LIMITS, post=lambda deliver: (posts.append(1), deliver())[1])
    number, sink = worker.next_number(), Sink()
    worker.submit(Request(number, [1, 2], 12, SamplingSettings(), guide=Slow()), sink)
    sink.wait()
    worker.close()
    assert len(posts) == 12


def test_what_was_drawn_is_told_before_the_error_that_ends_it(
    worker: Worker, engine: Gated
) -> None:
    engine.gate.clear()
    _, late = ask(worker, [1, 2], 50, deadline_s=0.05)
    real = engine.inner.step

    def dying(batch: Any) -> Any:
        time.sleep(0.0 if len(late.tokens) < 1 else 0.02)
        return real(batch)

    engine.inner.step = dying  # type: ignore[method-assign]
    engine.gate.set()
    assert isinstance(late.wait().error, DeadlineError)  # the sink refuses news after that
    assert late.tokens


def test_a_deadline_ends_a_request(worker: Worker, engine: Gated) -> None:
    engine.gate.clear()
    _, late = ask(worker, [1, 2], deadline_s=0.01)
    _, other = ask(worker, [3, 4])
    time.sleep(0.05)
    engine.gate.set()
    assert isinstance(late.wait().error, DeadlineError)
    assert len(other.wait().tokens) == 8


def test_deadlines_of_what_is_over_are_forgotten(worker: Worker) -> None:
    for _ in range(300):
        ask(worker, [1], 1, deadline_s=1e6)[1].wait()
    assert len(worker._deadlines) < 100
    assert isinstance(ask(worker, [1, 2], 50, deadline_s=0.0)[1].wait().error, DeadlineError)


def test_an_impossible_request_is_told_so(worker: Worker) -> None:
    _, sink = ask(worker, list(range(V)) * 3)
    assert isinstance(sink.wait().error, RequestError)
    assert len(ask(worker, [1])[1].wait().tokens) == 8


def test_a_step_that_is_refused_costs_the_youngest_only(worker: Worker, engine: Gated) -> None:
    engine.gate.clear()
    first, second = ask(worker, [1, 2])[1], ask(worker, [3, 4])[1]
    time.sleep(0.05)
    real = engine.inner.step

    def once(batch: Any) -> Any:
        if len(batch) == 2:
            raise RequestError("two are too many")
        return real(batch)

    engine.inner.step = once  # type: ignore[method-assign]
    engine.gate.set()
    ends = [first.wait(), second.wait()]
    assert isinstance(ends[1].error, RequestError)
    assert ends[0].error is None
    assert ends[0].reason == "length"


def test_a_dying_engine_fails_everybody_and_takes_nobody(worker: Worker, engine: Gated) -> None:
    engine.gate.clear()
    sinks = [ask(worker, [i + 1])[1] for i in range(6)]
    engine.error = ZeroDivisionError("oh")
    engine.gate.set()
    for sink in sinks:
        assert sink.wait().error is not None
    assert not worker.alive
    with pytest.raises(BusyError):
        ask(worker, [1])
    assert isinstance(worker.call(lambda _: 1).exception(timeout=5), BusyError)


def test_energy_is_split_by_ids_and_told_with_its_method(worker: Worker, engine: Gated) -> None:
    engine.gate.clear()
    few, many = ask(worker, [1], 4)[1], ask(worker, [2] * 12, 4)[1]
    engine.gate.set()
    spent = [sink.wait().energy for sink in (few, many)]
    total = worker.load().energy_j
    assert 0 < spent[0].energy_j < spent[1].energy_j
    assert spent[0].energy_j + spent[1].energy_j == pytest.approx(total)
    assert spent[0].estimate == (not worker.load().energy_measured)


def test_calls_run_between_steps(worker: Worker) -> None:
    assert worker.call(lambda e: e.config.vocab_size).result(timeout=5) == V
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda _: 1 / 0).result(timeout=5)
    assert worker.alive


def test_closing_lets_running_ones_end(engine: Gated) -> None:
    worker = Worker(engine, LIMITS)
    sinks = [ask(worker, [i + 1])[1] for i in range(6)]
    worker.close(drain_s=20)
    assert [s.wait().reason for s in sinks] == ["length"] * 6


def test_closing_at_once_tells_everybody(engine: Gated) -> None:
    worker = Worker(engine, LIMITS)
    engine.gate.clear()
    sinks = [ask(worker, [i + 1], 50)[1] for i in range(6)]
    threading.Timer(0.05, engine.gate.set).start()
    worker.close()
    assert all(isinstance(s.wait().error, BusyError) for s in sinks)


def test_scopes_share_no_positions(worker: Worker) -> None:
    prompt = list(range(1, 20))
    ask(worker, prompt, scope="a")[1].wait()
    ask(worker, prompt, scope="b")[1].wait()
    assert worker.load().reused_tokens == 0
    ask(worker, prompt, scope="a")[1].wait()
    assert worker.load().reused_tokens > 0


def test_guides_choose_each_draw(worker: Worker) -> None:
    class Countdown:
        def __init__(self) -> None:
            self.left = [5, 4, 3]

        def choice(self) -> tuple[SamplingSettings, Any]:
            return SamplingSettings(), np.arange(V) == self.left[0]

        def take(self, token: int) -> bool:
            assert token == self.left.pop(0)
            return not self.left

    sink = ask(worker, [1, 2], guide=Countdown(), logits=True)[1].wait()
    assert sink.tokens == [5, 4, 3]
    assert sink.reason == "stop"


def fill_with_kept(worker: Worker) -> None:
    """Leaves the cache full of conversations that are over."""
    for i in range(20):
        ask(worker, [1 + (i + j * j) % (V - 1) for j in range(24)], 30)[1].wait()
    assert worker.load().pages - worker.load().pages_used < 13  # of 50 positions


def read(n: int) -> Any:
    """Work that takes `n` positions."""

    def work(engine: Any) -> int:
        k = engine.open()
        try:
            engine.step([SeqWork(k, [1] * n, Want.NOTHING)])
            return int(engine.length(k))
        finally:
            engine.close(k)

    return work


def test_a_call_gets_the_room_of_what_is_over(worker: Worker) -> None:
    fill_with_kept(worker)
    with pytest.raises(RequestError, match="cache is full"):
        worker.call(read(50)).result(timeout=5)
    assert worker.call(read(50), positions=50).result(timeout=5) == 50
    with pytest.raises(RequestError, match="the cache has 64"):
        worker.call(read(50), positions=64 * 4 + 1).result(timeout=5)
    assert len(ask(worker, [1])[1].wait().tokens) == 8


def test_a_call_that_finds_no_room_beside_what_runs_is_to_come_again(engine: Gated) -> None:
    worker = Worker(engine, Limits(context=60, pages=15, page_positions=4, max_positions=60))
    _, sink = ask(worker, [1] * 40, 20)
    engine.gate.clear()
    while not worker.load().running:
        time.sleep(0.001)
    late = worker.call(read(50), positions=50)
    engine.gate.set()
    with pytest.raises(BusyError, match="13 pages"):
        late.result(timeout=5)
    assert len(sink.wait().tokens) == 20
    assert worker.call(read(50), positions=50).result(timeout=5) == 50
    worker.close()


def test_many_calls_hold_no_request_up(worker: Worker, engine: Gated) -> None:
    steps: list[int] = []
    calls = [worker.call(lambda _: steps.append(worker.load().steps)) for _ in range(20)]
    engine.gate.clear()
    _, sink = ask(worker, [1, 2], 50)
    calls += [worker.call(lambda _: steps.append(worker.load().steps)) for _ in range(20)]
    engine.gate.set()
    sink.wait()
    for call in calls:
        call.result(timeout=5)
    beside = steps[-19:]
    assert len(set(beside)) == len(beside)  # a step between any two of them


def test_a_worker_with_a_call_is_busy(worker: Worker) -> None:
    go = threading.Event()
    begun = threading.Event()
    call = worker.call(lambda _: (begun.set(), go.wait(20))[1])
    assert begun.wait(5)
    assert worker.busy
    go.set()
    assert call.result(timeout=5)
    deadline = time.monotonic() + 5
    while worker.busy:
        assert time.monotonic() < deadline
