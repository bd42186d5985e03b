import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from miudo.engine.fake import FakeEngine
from miudo.errors import MiudoError, UsageError
from miudo.evaluate.bench import Bench, BenchSettings, bench_path, speed

MakeEngine = Callable[..., FakeEngine]


def test_speed_counts_prompt_and_new_tokens_in_runs_of_their_own(make_engine: MakeEngine) -> None:
    engine = make_engine()
    found = speed(engine, BenchSettings(prompt_tokens=8, new_tokens=4, repeats=3))
    assert (found.prompt_tokens, found.new_tokens, found.repeats) == (8, 4, 3)
    assert found.prompt_tokens_per_s > 0
    assert found.new_tokens_per_s > 0
    assert found.energy_per_token_j > 0
    assert found.energy_method
    # One run warms up; a run is one step for the prompt and one a new token.
    assert engine.steps == 4 * (1 + 4)
    assert engine.opened == engine.closed == 4


def test_counts_shrink_to_the_models_positions(make_engine: MakeEngine) -> None:
    found = speed(make_engine(max_positions=10), BenchSettings(100, 100, 1))
    assert (found.prompt_tokens, found.new_tokens) == (5, 5)


def test_every_step_is_the_adapters(
    make_engine: MakeEngine, adapters_asked: list[str | None]
) -> None:
    speed(make_engine(), BenchSettings(4, 2, 1), adapter="mine")
    assert adapters_asked == ["mine"] * 6


def test_nothing_to_measure_is_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(UsageError):
        BenchSettings(repeats=0)
    with pytest.raises(UsageError, match="1 positions"):
        speed(make_engine(max_positions=1), BenchSettings())


def test_a_bench_survives_json(make_engine: MakeEngine) -> None:
    bench = Bench(speed(make_engine(), BenchSettings(4, 2, 1)), 0.1, 5.0, "how", "native avx2", 2)
    assert Bench.from_json(dataclasses.asdict(bench)) == bench


def test_a_child_that_fails_is_told_with_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(MiudoError, match=r"speed measurement failed.*no such"):
        bench_path(tmp_path / "none.gguf", BenchSettings())
