"""Where the time of a step goes: phases that add up to it, and no other bits for it."""

import time

import numpy as np
import pytest

from miudo.engine.native import PHASES, NativeEngine
from miudo.formats import open_model
from miudo.hub.resolve import embedded_path
from miudo.protocol import SeqWork, Want

# Arrays are made in Python, and a crowded machine may stop it there; the rest is in a phase.
LEAST_SHARE = 0.2


@pytest.fixture(params=[1, 2])
def engine(request: pytest.FixtureRequest) -> NativeEngine:
    return NativeEngine(open_model(embedded_path()), threads=request.param)


def test_phases_add_up_to_the_step(engine: NativeEngine) -> None:
    conversation = engine.open()
    engine.time_phases(True)
    start = time.perf_counter()
    engine.step([SeqWork(conversation, range(100, 300))])
    elapsed = time.perf_counter() - start
    phases = engine.phase_seconds()
    assert tuple(phases) == PHASES
    assert LEAST_SHARE * elapsed < sum(phases.values()) <= elapsed
    assert all(phases[name] > 0 for name in PHASES if name != "waiting")
    assert (phases["waiting"] > 0) == (engine.threads > 1)


def test_they_are_summed_while_they_are_wanted(engine: NativeEngine) -> None:
    conversation = engine.open()

    def step() -> float:
        engine.step([SeqWork(conversation, [5])])
        return sum(engine.phase_seconds().values())

    assert step() == 0.0  # nobody has asked
    engine.time_phases(True)
    first = step()
    assert 0.0 < first < step()
    engine.time_phases(True)
    assert sum(engine.phase_seconds().values()) == 0.0
    engine.time_phases(False)
    assert step() == 0.0


def test_a_step_without_logits_has_no_head(engine: NativeEngine) -> None:
    engine.time_phases(True)
    engine.step([SeqWork(engine.open(), [1, 2, 3], Want.NOTHING)])
    assert engine.phase_seconds()["head"] == 0.0


def test_bits_do_not_depend_on_it(engine: NativeEngine) -> None:
    logits = []
    for wanted in (False, True):
        engine.time_phases(wanted)
        (out,) = engine.step([SeqWork(engine.open(), range(40), Want.LAST_LOGITS)])
        assert out.logits is not None
        logits.append(out.logits)
    np.testing.assert_array_equal(*logits)
