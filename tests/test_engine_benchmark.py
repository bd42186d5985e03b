"""The instrument of benchmarks/engine.py: turns, intervals, and the process that answers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from engine_pairs import NotMeasured, Sample, Worker, in_turns, interval  # noqa: E402

Give = Callable[[], Sample]


def quiet(line: str) -> None:
    assert line


@pytest.mark.parametrize(
    ("n", "low", "high", "coverage"),
    [(5, 1, 5, 0.9375), (6, 1, 6, 0.96875), (9, 2, 8, 0.9609375), (13, 3, 11, 0.9775390625)],
)
def test_the_interval_is_that_of_the_sign_test(
    n: int, low: int, high: int, coverage: float
) -> None:
    found = interval([float(i) for i in range(n, 0, -1)])
    assert (found.median, found.low, found.high) == ((n + 1) / 2, low, high)
    assert found.coverage == coverage


def test_one_pair_covers_nothing() -> None:
    found = interval([2.0])
    assert (found.median, found.low, found.high, found.coverage) == (2.0, 2.0, 2.0, 0.0)


@pytest.mark.parametrize(
    ("ratios", "met"),
    [
        ([2.1] * 9, "aim"),
        ([1.9] * 3 + [2.1] * 6, "aim?"),
        ([1.5] * 9, "must"),
        ([1.2] * 2 + [1.5] * 7, "must?"),
        ([1.2] * 6 + [1.5] * 3, "no?"),
        ([1.2] * 9, "no"),
    ],
)
def test_a_bound_is_met_surely_only_where_the_interval_is_above(
    ratios: list[float], met: str
) -> None:
    assert interval(ratios).met(1.35, 2.0) == met


def test_nothing_is_sure_of_few_pairs_or_on_a_busy_machine() -> None:
    assert interval([2.1] * 5).met(1.35, 2.0) == "aim?"
    assert interval([1.0] * 9).met(1.35, 2.0, sure=False) == "no?"


def test_sides_take_turns_and_the_first_of_each_is_not_counted() -> None:
    order: list[str] = []

    def side(name: str) -> Give:
        def give() -> Sample:
            order.append(name)
            return Sample(amount=float(len(order)), seconds=1.0)

        return give

    samples, missing = in_turns({"a": side("a"), "b": side("b")}, 2, 0.15, quiet)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert [s.rate for s in samples["a"]] == [3.0, 6.0]
    assert [s.rate for s in samples["b"]] == [4.0, 5.0]
    assert not missing


def test_loaded_rounds_are_left_out_whole_where_enough_are_clean() -> None:
    loads = iter([0.9] * 2 + [0.0, 0.0] + [0.0, 0.5] + [0.0, 0.0] * 20)

    def give() -> Sample:
        return Sample(1.0, 1.0, foreign=next(loads))

    samples, _ = in_turns({"a": give, "b": give}, 6, 0.15, quiet)
    assert [s.foreign for side in samples.values() for s in side] == [0.0] * 12


def test_where_few_are_clean_all_are_told() -> None:
    samples, _ = in_turns({"a": lambda: Sample(1.0, 1.0, foreign=1.0)}, 6, 0.15, quiet)
    assert [s.foreign for s in samples["a"]] == [1.0] * 9


def test_a_side_that_fails_is_named_and_the_rest_goes_on() -> None:
    def fail() -> Sample:
        raise NotMeasured("not here")

    samples, missing = in_turns({"a": lambda: Sample(1.0, 1.0), "b": fail}, 2, 0.15, quiet)
    assert missing == {"b": "not here"}
    assert [len(side) for side in samples.values()] == [2]


def test_the_process_answers_orders_and_says_what_it_cannot() -> None:
    model = files("miudo.hub") / "embedded" / "miudo-6m.gguf"
    worker = [sys.executable, str(BENCHMARKS / "engine_worker.py"), "miudo", str(model), "1"]
    with Worker(worker, {"MIUDO_ISA": "portable"}) as running:
        assert "portable" in running.version
        decoded = running.ask({"do": "decode", "context": 8, "tokens": 3, "sequences": 2})
        assert decoded.amount % 6 == 0 < decoded.amount
        assert decoded.seconds >= 0.4
        assert decoded.cache_bytes > 0
        with pytest.raises(NotMeasured, match="positions"):
            running.ask({"do": "prompt", "tokens": 1 << 13})
        again = running.ask({"do": "prompt", "tokens": 16})
        assert again.amount % 16 == 0 < again.amount


def test_a_model_that_does_not_load_is_a_side_that_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "engine_worker.py"), "miudo"]
    with pytest.raises(NotMeasured, match="no such file"):
        Worker([*command, str(tmp_path / "none.gguf"), "1"], {})
