"""Speeds over contexts and batches on a scripted engine and a machine of known rates."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from miudo.engine.fake import FakeEngine
from miudo.engine.probe import Peaks
from miudo.errors import RequestError, UsageError
from miudo.evaluate import grid as module
from miudo.evaluate.grid import Grid, GridSettings, measure_grid
from miudo.evaluate.roofline import Numbers
from miudo.evaluate.timed import Conversations
from miudo.protocol import SeqWork, StepOut
from miudo.tensors import DType, tensor_table

MakeEngine = Callable[..., FakeEngine]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Each time it is asked the machine is as fast as the first time, then twice as fast."""
    asked: list[tuple[int, int]] = []
    faster = itertools.cycle((1.0, 2.0))

    def peaks(threads: int, read_bytes: int) -> Peaks:
        asked.append((threads, read_bytes))
        times = next(faster)
        return Peaks(read_bytes, 1e9 * times, 4e9 * times, 1e9 * times)

    monkeypatch.setattr(module, "measure_peaks", peaks)
    return asked


def measured(engine: FakeEngine, **settings: Any) -> Grid:
    return measure_grid(engine, _f32(engine), GridSettings(**settings), threads=3)


def test_each_context_has_one_conversation_and_each_batch_the_first_context(
    make_engine: MakeEngine,
) -> None:
    grid = measured(make_engine(), contexts=(8, 4, 16), batches=(2, 1), new_tokens=4, seconds=0.5)
    assert [(c.context, c.batch) for c in grid.cells] == [(4, 1), (4, 2), (8, 1), (16, 1)]
    assert not grid.left_out
    for cell in grid.cells:
        assert cell.prompt.tokens == cell.context * cell.batch
        assert cell.decode.tokens == 4 * cell.batch
        for phase in (cell.prompt, cell.decode):
            assert phase.lowest <= phase.tokens_per_s <= phase.highest
            assert 1 <= phase.runs <= 9
            assert phase.energy_per_token_j >= 0


def test_every_conversation_is_closed(make_engine: MakeEngine) -> None:
    engine = make_engine()
    measured(engine, contexts=(4,), batches=(1, 3), new_tokens=2, seconds=0.2)
    assert engine.opened == engine.closed == 4


def test_shares_are_of_the_rates_before_and_after(
    make_engine: MakeEngine, machine: list[tuple[int, int]]
) -> None:
    (cell,) = measured(make_engine(), contexts=(4,), batches=(1,), new_tokens=4, seconds=0.2).cells
    step = module.step_work(make_engine().config, _f32(make_engine()), [(4, 1)])
    assert machine == [(3, step.bytes)] * 2
    phase = cell.decode
    # Half of the runs' time at one rate, half at twice that.
    seconds_a_step = phase.work.bytes / 1e9 * (1 + 1 / 2) / 2
    assert phase.of_bandwidth == pytest.approx(seconds_a_step * phase.tokens_per_s)
    arithmetic = phase.work.float_ops / 1e9 * (1 + 1 / 2) / 2
    assert phase.of_arithmetic == pytest.approx(arithmetic * phase.tokens_per_s)
    limit = max(phase.of_bandwidth, phase.of_arithmetic)
    assert phase.ceiling_tokens_per_s == pytest.approx(phase.tokens_per_s / limit)


def test_a_context_beyond_the_positions_becomes_the_longest(make_engine: MakeEngine) -> None:
    grid = measured(
        make_engine(max_positions=20), contexts=(4, 512, 8192), batches=(1,), new_tokens=6,
        seconds=0.2,
    )  # fmt: skip
    assert [cell.context for cell in grid.cells] == [4, 14]
    assert [cell.decode.tokens for cell in grid.cells] == [6, 6]


def test_what_there_is_no_time_for_is_named(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(step=0.1)
    # Each look at the clock takes a tenth of a second, a token a second.
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(Conversations, "prompt", lambda self, length, run=0: float(length))
    monkeypatch.setattr(Conversations, "rewind", lambda self, length: None)
    monkeypatch.setattr(Conversations, "decode", lambda self, steps: float(steps))
    grid = measured(make_engine(), contexts=(2, 4, 40), batches=(1,), new_tokens=2, seconds=9.0)
    assert [cell.context for cell in grid.cells] == [2, 4]
    assert grid.left_out == {
        "context 40, batch 1": "a prompt takes about 40 s, more than was left of 9 s"
    }
    grid = measured(make_engine(), contexts=(2, 4), batches=(1,), new_tokens=2, seconds=0.2)
    assert [cell.context for cell in grid.cells] == [2]
    assert grid.left_out == {"context 4, batch 1": "the 0.2 s were over"}


def test_what_the_engine_refuses_is_named(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: FakeEngine, batch: list[SeqWork]) -> list[StepOut]:
        if len(batch) > 1:
            raise RequestError("the cache is full")
        return real(self, batch)

    real = FakeEngine.step
    monkeypatch.setattr(FakeEngine, "step", step)
    grid = measured(make_engine(), contexts=(4,), batches=(1, 2), new_tokens=2, seconds=0.2)
    assert [cell.batch for cell in grid.cells] == [1]
    assert grid.left_out == {"context 4, batch 2": "the cache is full"}
    with pytest.raises(RequestError, match="cache is full"):
        measured(make_engine(), contexts=(4,), batches=(2,), new_tokens=2, seconds=0.2)


def test_phases_are_those_of_one_run_more(make_engine: MakeEngine) -> None:
    class Timed(FakeEngine):
        on, counted = False, 0

        def time_phases(self, wanted: bool) -> None:
            self.on, self.counted = wanted, 0

        def phase_seconds(self) -> dict[str, float]:
            return {"all": float(self.counted)}

        def step(self, batch: Any) -> list[StepOut]:
            self.counted += self.on
            return super().step(batch)

    engine = make_engine()
    engine.__class__ = Timed
    how: dict[str, Any] = {"contexts": (4,), "batches": (1,), "new_tokens": 3, "seconds": 0.1}
    (cell,) = measured(engine, **how).cells
    assert (cell.prompt.phases_s, cell.decode.phases_s) == ({}, {})
    (cell,) = measured(engine, **how, phases=True).cells
    assert (cell.prompt.phases_s, cell.decode.phases_s) == ({"all": 1.0}, {"all": 3.0})
    assert isinstance(engine, Timed)
    assert not engine.on
    (cell,) = measured(make_engine(), **how, phases=True).cells
    assert cell.decode.phases_s == {}


def test_a_single_new_token_at_the_last_position(make_engine: MakeEngine) -> None:
    grid = measured(
        make_engine(max_positions=8), contexts=(99,), batches=(1,), new_tokens=1, seconds=0.1
    )
    assert [(cell.context, cell.decode.tokens) for cell in grid.cells] == [(7, 1)]


def test_settings_that_measure_nothing_are_refused(make_engine: MakeEngine) -> None:
    for settings in ({"contexts": (0,)}, {"batches": ()}, {"new_tokens": 0}, {"seconds": 0.0}):
        with pytest.raises(UsageError):
            GridSettings(**settings)
    with pytest.raises(UsageError, match="1 positions"):
        measured(make_engine(max_positions=1))


def test_no_prompt_begins_like_another(make_engine: MakeEngine) -> None:
    prompts: list[tuple[int, ...]] = []

    class Watched(FakeEngine):
        def step(self, batch: Any) -> list[StepOut]:
            prompts.extend(tuple(work.ids) for work in batch if len(work.ids) > 1)
            return super().step(batch)

    engine = make_engine(vocab_size=5003)
    engine.__class__ = Watched
    with Conversations(engine, 3) as conversations:
        for run in range(3):
            conversations.prompt(4, run)
    assert len(prompts) == len({prompt[0] for prompt in prompts}) == 9


def _f32(engine: FakeEngine) -> Numbers:
    return Numbers({spec.name: DType.F32 for spec in tensor_table(engine.config)})
