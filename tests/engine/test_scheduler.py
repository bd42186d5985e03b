"""The scheduler: everyone gets the tokens they would get alone, within all limits, and soon."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miudo.config import ModelConfig
from miudo.engine.batches import Close, Limits, Open, Plan, Progress, Request, carry_out
from miudo.engine.fake import FakeEngine, babble
from miudo.engine.native import NativeEngine
from miudo.engine.scheduler import Scheduler
from miudo.errors import RequestError
from miudo.protocol import Engine, SamplingSettings, SeqWork, Want

V = 23
CONFIG = ModelConfig.uniform(
    n_layers=1, d_model=8, n_heads=1, d_ff=8, vocab_size=V, max_positions=60
)


def alone(engine: Engine, request: Request) -> tuple[list[int], str]:
    """What a request gets with an engine to itself, one id a step."""
    k, pending, tokens = engine.open(), list(request.prompt), list[int]()
    limit = min(request.max_tokens, engine.config.max_positions - len(pending) + 1)
    try:
        while True:
            (out,) = engine.step(
                [SeqWork(k, pending, Want.SAMPLE, request.sampling, request.mask, request.adapter)]
            )
            assert out.token is not None
            tokens.append(out.token)
            pending = [out.token]
            if out.token in request.eos_ids:
                return tokens, "stop"
            if len(tokens) == limit:
                return tokens, "length"
    finally:
        engine.close(k)


class Driver:
    """Runs a scheduler on an engine, as a server does, and checks every step on the way."""

    def __init__(self, engine: Any, limits: Limits) -> None:
        self.engine, self.limits = engine, limits
        self.scheduler = Scheduler(limits)
        self.conversations: dict[int, int] = {}
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.reasons: dict[int, str] = {}
        self.plans: list[Plan] = []
        self.spare = 0  # pages that the scheduler counts and the engine has not taken

    def step(self, drafts: Any = None, *, fails: bool = False) -> list[Progress]:
        plan = self.scheduler.plan(drafts)
        self.plans.append(plan)
        assert len(plan.work) <= self.limits.max_sequences
        assert sum(len(w.ids) for w in plan.work) <= self.limits.max_positions
        assert len(plan.work) == self.scheduler.running  # each gets on, every step
        carry_out(self.engine, Plan(plan.changes, (), ()), self.conversations)
        self.spare = self.scheduler.pages_used - self.pages_used()
        if fails:
            return []
        plan = Plan((), plan.work, plan.numbers)
        news = self.scheduler.settle(carry_out(self.engine, plan, self.conversations))
        for piece in news:
            assert piece.number not in self.reasons
            self.tokens[piece.number] += piece.tokens
            if piece.finish_reason:
                self.reasons[piece.number] = piece.finish_reason
        return news

    def pages_used(self) -> int:
        if isinstance(self.engine, FakeEngine):
            return self.engine.pages_used
        return int(self.engine.cache_bytes_used // self.engine.page_bytes)

    def finish(self, most: int = 3000) -> None:
        while self.scheduler.running or self.scheduler.waiting:
            self.step()
            most -= 1
            assert most, "it never ends"


def fake(limits: Limits) -> FakeEngine:
    return FakeEngine(
        CONFIG, babble(V), cache_pages=limits.pages, page_positions=limits.page_positions
    )


STEMS = [[], [1], [1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5] * 6, [9, 8, 7, 6, 5, 4, 3, 2] * 3]


@st.composite
def some_request(draw: Any, number: int) -> Request:
    prompt = [*draw(st.sampled_from(STEMS)), *draw(st.lists(st.integers(0, V - 1), max_size=12))]
    mask = np.arange(V) % 2 == 0 if draw(st.integers(0, 4)) == 0 else None
    return Request(
        number,
        prompt or [3],
        draw(st.integers(1, 24)),
        draw(
            st.sampled_from(
                [SamplingSettings(), SamplingSettings(temperature=0.9, seed=number, request=7)]
            )
        ),
        draw(st.sampled_from([(), (5,), (2, 4, 6)])),
        mask=mask,
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_each_gets_the_tokens_it_would_get_alone(data: st.DataObject) -> None:
    sequences = data.draw(st.integers(1, 6))
    limits = Limits(
        context=60,
        pages=data.draw(st.integers(8, 40)),
        page_positions=data.draw(st.sampled_from([4, 8])),
        max_positions=sequences + data.draw(st.integers(0, 20)),
        max_sequences=sequences,
        max_kept=data.draw(st.integers(0, 5)),
    )
    driver = Driver(fake(limits), limits)
    quiet = FakeEngine(CONFIG, babble(V))
    right: dict[int, tuple[list[int], str]] = {}
    cancelled: set[int] = set()
    failures = 0
    absent = 0
    for _ in range(data.draw(st.integers(1, 30))):
        for _ in range(data.draw(st.integers(0, 2))):
            request = data.draw(some_request(len(right)))
            right[request.number] = alone(quiet, request)
            try:
                driver.scheduler.submit(request)
            except RequestError:  # more pages than there are
                del right[request.number]
                break
        if right and data.draw(st.integers(0, 9)) == 0:
            number = data.draw(st.sampled_from(sorted(right)))
            driver.scheduler.stop(number)
            cancelled.add(number)
        drafts = {}
        for number, (tokens, _) in right.items():
            made = len(driver.tokens[number])
            if data.draw(st.integers(0, 2)) == 0:
                drafts[number] = [*tokens[made : made + data.draw(st.integers(0, 4))], 1, 2]
        fails = data.draw(st.integers(0, 19)) == 0
        failures += fails
        driver.step(drafts, fails=fails)
        assert driver.spare == 0 if not failures else driver.spare >= 0
        left = [n for n in right if n not in cancelled and n not in driver.reasons]
        absent = absent + 1 if left and left[0] not in driver.plans[-1].numbers else 0
        assert absent <= 45, "the oldest waits for longer than another reads the same"
    driver.finish()
    for number, (tokens, reason) in right.items():
        if number in cancelled:
            assert driver.tokens[number] == tokens[: len(driver.tokens[number])]
        else:
            assert (driver.tokens[number], driver.reasons[number]) == (tokens, reason)
    driver.scheduler.plan()  # what was closed at the end
    assert driver.scheduler.pages_used <= limits.pages


def test_prompts_are_read_beside_tokens_and_in_equal_shares() -> None:
    limits = Limits(context=60, pages=100, page_positions=4, max_positions=12, max_sequences=4)
    driver = Driver(fake(limits), limits)
    driver.scheduler.submit(Request(0, [1], 30))
    driver.step()
    driver.scheduler.submit(Request(1, [2] * 40, 3))
    driver.scheduler.submit(Request(2, [3] * 7, 3))
    driver.scheduler.submit(Request(3, [4] * 7, 3))
    driver.step()
    assert [(n, len(w.ids)) for n, w in zip(*shown(driver), strict=True)] == [
        (0, 1), (1, 4), (2, 3), (3, 4),
    ]  # fmt: skip
    driver.step()
    assert [len(w.ids) for w in driver.plans[-1].work] == [1, 4, 4, 3]
    driver.step()  # the short ones need one id each, the long prompt has the rest
    assert [len(w.ids) for w in driver.plans[-1].work] == [1, 9, 1, 1]
    assert len(driver.tokens[0]) == 4
    assert (len(driver.tokens[2]), len(driver.tokens[3])) == (2, 2)


def shown(driver: Driver) -> tuple[tuple[int, ...], tuple[SeqWork, ...]]:
    return driver.plans[-1].numbers, driver.plans[-1].work


def positions(driver: Driver) -> int:
    return sum(len(w.ids) for plan in driver.plans for w in plan.work)


def test_many_answers_to_one_prompt_read_it_once() -> None:
    limits = Limits(context=60, pages=100, page_positions=4, max_positions=16, max_sequences=8)
    driver = Driver(fake(limits), limits)
    prompt = list(range(20)) + list(range(20))
    for n in range(5):
        sampling = SamplingSettings(temperature=1.0, seed=n)
        driver.scheduler.submit(Request(n, prompt, 6, sampling))
    driver.finish()
    assert driver.scheduler.reused == 4 * 39
    assert positions(driver) == 40 + 4 + 5 * 5
    assert len({tuple(t) for t in driver.tokens.values()}) == 5


def test_the_next_turn_of_a_chat_goes_on_where_the_last_ended() -> None:
    limits = Limits(context=60, pages=100, page_positions=4)
    driver = Driver(fake(limits), limits)
    driver.scheduler.submit(Request(0, list(range(20)), 5))
    driver.finish()
    second = [*range(20), *driver.tokens[0], 7, 7, 7]
    driver.scheduler.submit(Request(1, second, 5))
    driver.finish()
    assert driver.scheduler.reused == 24
    # Of the two conversations the longer is kept, which the shorter begins.
    driver.scheduler.plan()
    assert driver.scheduler.pages_used == -(-(len(second) + 4) // 4)
    driver.scheduler.submit(Request(2, second, 1, adapter="other"))
    driver.scheduler.plan()
    assert driver.scheduler.reused == 24  # keys and values are the adapter's


def test_what_was_used_last_is_kept_longest() -> None:
    limits = Limits(context=60, pages=10, page_positions=4)
    driver = Driver(fake(limits), limits)
    for n, start in enumerate((1, 2, 3, 1)):  # 3 pages each, in the slots 1 to 4
        driver.scheduler.submit(Request(n, [start] * 11, 1))
        driver.finish()
    assert driver.scheduler.reused == 10
    driver.scheduler.submit(Request(4, [4] * 12, 1))
    driver.step()
    # The fourth holds no more than the first, which was used last.
    assert driver.plans[-1].changes == (Close(4), Open(5), Close(2))


def test_the_youngest_steps_back_and_loses_nothing() -> None:
    limits = Limits(context=60, pages=10, page_positions=4)
    driver = Driver(fake(limits), limits)
    requests = [Request(n, [n + 1] * 8, 25) for n in range(2)]
    for request in requests:
        driver.scheduler.submit(request)
    driver.finish()
    assert driver.scheduler.preempted == 1
    quiet = FakeEngine(CONFIG, babble(V))
    for request in requests:
        assert driver.tokens[request.number] == alone(quiet, request)[0]
    first = [i for i, plan in enumerate(driver.plans) if 0 in plan.numbers]
    assert first == list(range(25))  # the elder never waited


def test_a_waiting_request_comes_in_when_another_is_cancelled() -> None:
    limits = Limits(context=60, pages=100, page_positions=4, max_sequences=1)
    driver = Driver(fake(limits), limits)
    driver.scheduler.submit(Request(0, [1, 2, 3], 20))
    driver.scheduler.submit(Request(1, [1, 2, 4], 2))
    driver.step()
    plan = driver.scheduler.plan()
    driver.scheduler.stop(0)  # while its step is under way
    assert (driver.scheduler.running, driver.scheduler.waiting) == (1, 1)
    assert driver.scheduler.settle(carry_out(driver.engine, plan, driver.conversations)) == []
    assert (driver.scheduler.running, driver.scheduler.waiting) == (0, 1)
    driver.step()
    assert driver.plans[-1].numbers == (1,)
    assert driver.plans[-1].changes == (Open(2, 1, 2),)
    driver.scheduler.stop(99)  # over long ago
    driver.finish()


def test_requests_that_could_never_end_are_refused() -> None:
    scheduler = Scheduler(Limits(context=60, pages=5, page_positions=4))
    for prompt, tokens, says in [
        ([], 1, "0 ids"), ([1] * 61, 1, "61 ids"), ([1], 0, "wants 0"), ([1] * 12, 10, "6 pages"),
    ]:  # fmt: skip
        with pytest.raises(RequestError, match=says):
            scheduler.submit(Request(1, prompt, tokens))
    scheduler.submit(Request(1, [1] * 12, 9))
    with pytest.raises(RequestError, match="there already"):
        scheduler.submit(Request(1, [1], 1))
    for bad in ({"pages": 0}, {"context": 0}, {"max_positions": 3, "max_sequences": 4}):
        with pytest.raises(RequestError):
            Limits(**{"context": 60, "pages": 5} | bad)


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert Scheduler(Limits(context=60, pages=5)).plan() == Plan((), (), ())


@pytest.mark.parametrize("pages", [7, 40])
def test_the_native_engine_serves_as_it_would_each_alone(llama: Any, pages: int) -> None:
    size = NativeEngine(llama, threads=1).page_bytes
    engine = NativeEngine(llama, threads=2, cache_bytes=pages * size)
    config = engine.config
    limits = Limits(config.max_positions, pages, engine.page_positions, 48, max_sequences=6)
    driver = Driver(engine, limits)
    rng = np.random.default_rng(4)
    stem = rng.integers(0, config.vocab_size, 50).tolist()
    requests = []
    for n in range(14):
        own = rng.integers(0, config.vocab_size, int(rng.integers(1, 30))).tolist()
        sampling = SamplingSettings(temperature=0.8 if n % 2 else 0.0, seed=n, top_p=0.95)
        prompt = stem[: int(rng.integers(0, 30))] + own
        requests.append(Request(n, prompt, int(rng.integers(1, 120)), sampling))
    for request in requests:
        driver.scheduler.submit(request)
        driver.step()
        assert driver.spare == 0
    driver.finish()
    assert (driver.scheduler.preempted > 0) == (pages == 7)
    assert driver.scheduler.reused > 100
    driver.scheduler.plan()
    quiet = NativeEngine(llama, threads=1)
    for request in requests:
        tokens, reason = alone(quiet, request)
        assert driver.tokens[request.number] == tokens
        assert driver.reasons[request.number] == reason


def test_a_guide_that_knows_no_further_ends_its_own_request_alone() -> None:
    class Lost:
        def __init__(self) -> None:
            self.drawn = 0

        def choice(self) -> tuple[SamplingSettings, None]:
            if self.drawn == 2:
                raise RequestError("nothing can follow")
            return SamplingSettings(), None

        def take(self, token: int) -> bool:
            self.drawn += 1
            return False

    driver = Driver(FakeEngine(CONFIG, babble(V)), Limits(context=60, pages=40))
    driver.scheduler.submit(Request(1, [1, 2], 8, guide=Lost()))
    driver.scheduler.submit(Request(2, [3, 4], 8))
    failed: list[tuple[int, RequestError]] = []
    reasons: dict[int, str | None] = {}
    while driver.scheduler.running or driver.scheduler.waiting:
        plan = driver.scheduler.plan()
        outs = carry_out(driver.engine, plan, driver.conversations)
        for progress in driver.scheduler.settle(outs):
            reasons[progress.number] = progress.finish_reason
        for number, error in plan.failed:
            failed.append((number, error))
            driver.scheduler.stop(number)
    assert [(number, error.what) for number, error in failed] == [(1, "nothing can follow")]
    assert reasons == {1: None, 2: "length"}
