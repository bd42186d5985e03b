"""The instrument of benchmarks/engine.py: turns, intervals, and the process that answers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Literal

import pytest

from miudo.formats import open_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import engine_pairs  # noqa: E402
from engine_lines import factor_of, line_of, memory_line  # noqa: E402
from engine_pairs import NotMeasured, Sample, Worker, in_turns, interval  # noqa: E402
from engine_rows import OURS, Check, Order, Row, Side, decode, prompt, rows  # noqa: E402

Give = Callable[[], Sample]
MODELS = Path(str(files("miudo.hub") / "embedded"))
MODEL = "miudo-6m.gguf"


def row_of(order: Order, check: Check, other: Order | None = None) -> Row:
    sides = {OURS: Side(OURS, MODEL, order), "other": Side(OURS, MODEL, other or order)}
    return Row("row", "Row", sides, (check,))


def quiet(line: str) -> None:
    assert line


def never() -> None:
    """No rest between sides."""


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


def test_a_side_waits_for_rest_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([0.0, 0.1, 0.1, 0.11])  # ten percent of a core more, then one
    monkeypatch.setattr(engine_pairs, "machine_seconds", lambda: (next(busy), 0.0))
    engine_pairs.until_rest()
    assert next(busy, None) is None
    always = iter(range(100))
    monkeypatch.setattr(engine_pairs, "machine_seconds", lambda: (float(next(always)), 0.0))
    monkeypatch.setattr(engine_pairs, "REST_S", 0.15)
    engine_pairs.until_rest()
    assert next(always) == 4


def test_sides_take_turns_and_the_first_of_each_is_not_counted() -> None:
    order: list[str] = []

    def side(name: str) -> Give:
        def give() -> Sample:
            order.append(name)
            return Sample(amount=float(len(order)), seconds=1.0)

        return give

    samples, missing = in_turns({"a": side("a"), "b": side("b")}, 2, 0.15, quiet, never)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert [s.rate for s in samples["a"]] == [3.0, 6.0]
    assert [s.rate for s in samples["b"]] == [4.0, 5.0]
    assert not missing


def test_loaded_rounds_are_left_out_whole_where_enough_are_clean() -> None:
    loads = iter([0.9] * 2 + [0.0, 0.0] + [0.0, 0.5] + [0.0, 0.0] * 20)

    def give() -> Sample:
        return Sample(1.0, 1.0, foreign=next(loads))

    samples, _ = in_turns({"a": give, "b": give}, 6, 0.15, quiet, never)
    assert [s.foreign for side in samples.values() for s in side] == [0.0] * 12


def test_where_few_are_clean_all_are_told() -> None:
    samples, _ = in_turns({"a": lambda: Sample(1.0, 1.0, foreign=1.0)}, 6, 0.15, quiet, never)
    assert [s.foreign for s in samples["a"]] == [1.0] * 9


def test_a_side_that_fails_is_named_and_the_rest_goes_on() -> None:
    def fail() -> Sample:
        raise NotMeasured("not here")

    samples, missing = in_turns({"a": lambda: Sample(1.0, 1.0), "b": fail}, 2, 0.15, quiet, never)
    assert missing == {"b": "not here"}
    assert [len(side) for side in samples.values()] == [2]


def test_the_process_answers_orders_and_says_what_it_cannot() -> None:
    worker = [sys.executable, str(BENCHMARKS / "engine_worker.py"), "miudo"]
    worker += [str(MODELS / MODEL), "1"]
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


def test_a_line_holds_pairs_against_the_best_that_is_here() -> None:
    check = Check("x best peer", 1.35, 2.0, ("slow", "fast", "absent"))
    samples = {
        OURS: [Sample(30.0, 1.0)] * 9,
        "slow": [Sample(10.0, 1.0)] * 9,
        "fast": [Sample(20.0, 1.0, foreign=0.1)] * 9,
    }
    line = line_of(row_of(decode(16, 4), check), check, samples, MODELS, quiet=0.15)
    assert line.figure == "x best peer (fast), without absent"
    assert (line.measured, line.interval, line.met) == ("1.50", "1.50 to 1.50", "must?")
    assert line.load == "0.10"
    bare = line_of(row_of(decode(16, 4), check), check, {OURS: samples[OURS]}, MODELS, quiet=0.15)
    assert (bare.measured, bare.met) == ("-", "-")


def test_factors_are_the_bytes_and_operations_of_the_file() -> None:
    model = open_model(MODELS / MODEL)
    stored = sum(t.dtype.size_bytes(t.shape) for t in model.weights.values())
    matrices = sum(prod(t.shape) for t in model.weights.values() if len(t.shape) > 1)
    assert model.config.tie_embeddings
    some = Sample(1.0, 1.0)

    def factor(kind: Literal["weights", "ops", "cache"], order: Order, *two: Sample) -> float:
        check = Check("", 1.0, 1.0, ("other",), kind)
        return factor_of(row_of(order, check, decode(100, 4)), check, *two, MODELS)

    # One row of the table is looked up besides.
    assert factor("weights", decode(16, 4), some, some) == pytest.approx(stored, rel=0.01)
    # Attention comes on top, the head is computed once.
    head = model.config.vocab_size * model.config.d_model
    assert 0.9 < factor("ops", prompt(256), some, some) / (2 * (matrices - head)) < 1.2
    far, near = Sample(1.0, 1.0, cache_bytes=1100.0), Sample(1.0, 1.0, cache_bytes=100.0)
    predicted = (stored + 1102) / (stored + 102)
    assert factor("cache", decode(1100, 4), far, near) == pytest.approx(predicted, rel=1e-5)


def test_memory_is_held_against_the_file() -> None:
    cells = [memory_line("", 1_000_000_000, most).met for most in (1_070e6, 1_190e6, 1_191e6)]
    assert cells == ["aim", "must", "no"]


def test_rows_have_names_of_their_own_and_bounds_in_order() -> None:
    names = [row.name for row in rows()]
    assert len(set(names)) == len(names) > 25
    for row in rows():
        for check in row.checks:
            assert check.must < check.aim
            assert set(check.over) <= set(row.sides)
