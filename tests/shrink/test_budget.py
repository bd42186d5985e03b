"""Limits, the front and rank correlation, against small implementations of their own."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from miudo.cli.options import parse_size
from miudo.cli.planning import _ORDERS, parse_share
from miudo.errors import ConfigError, UsageError
from miudo.shrink.budget import Budget, Figures, Prefer, enough_for, pareto_front, spearman
from miudo.shrink.candidates import Order
from miudo.shrink.jobs import ShrinkJob, ShrinkSettings
from miudo.shrink.result import outcome_of

number = st.integers(1, 6).map(float)
points = st.lists(st.builds(Figures, number, number, number), min_size=1, max_size=12)


def beats(a: Figures, b: Figures) -> bool:
    better = (
        a.size_bytes < b.size_bytes,
        a.tokens_per_s > b.tokens_per_s,
        a.ppl_increase < b.ppl_increase,
    )
    worse = (
        a.size_bytes > b.size_bytes,
        a.tokens_per_s < b.tokens_per_s,
        a.ppl_increase > b.ppl_increase,
    )
    return any(better) and not any(worse)


@given(points)
def test_the_front_is_those_that_none_beats(figures: list[Figures]) -> None:
    front = pareto_front(figures, lambda f: f)
    assert front
    for one in figures:
        assert (one in front) == (not any(beats(other, one) for other in figures))


@given(st.lists(st.tuples(number, number), min_size=3, max_size=15))
def test_rank_correlation_is_that_of_the_ranks(pairs: list[tuple[float, float]]) -> None:
    x, y = [p[0] for p in pairs], [p[1] for p in pairs]

    def ranks(values: list[float]) -> list[float]:
        # The mean place of a value is (how many are below + how many are not above + 1) / 2.
        below = [sum(w < v for w in values) for v in values]
        upto = [sum(w <= v for w in values) for v in values]
        return [(b + u + 1) / 2 for b, u in zip(below, upto, strict=True)]

    a, b = ranks(x), ranks(y)
    n = len(a)
    covariance = sum(p * q for p, q in zip(a, b, strict=True)) / n - (sum(a) / n) * (sum(b) / n)
    spread = [math.sqrt(max(0.0, sum(v * v for v in r) / n - (sum(r) / n) ** 2)) for r in (a, b)]
    found = spearman(x, y)
    if found is None:
        assert min(spread) == pytest.approx(0.0, abs=1e-9)
    else:
        assert found == pytest.approx(covariance / (spread[0] * spread[1]), abs=1e-9)


def test_rank_correlation_of_known_rows() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with d = 0, 1, -1, 0.
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert spearman([1, 2], [1, 2]) is None
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_limits_say_by_how_much_they_are_broken() -> None:
    budget = Budget(max_size_bytes=40_000_000, min_tokens_per_s=30.0, max_ppl_increase=0.05)
    short = budget.shortfalls(Figures(41_200_000, 24.0, 0.0710))
    assert [s.limit for s in short] == ["--max-size", "--min-speed", "--max-ppl-increase"]
    assert "1.20 MB over" in short[0].text
    assert "6.0 under" in short[1].text
    assert "2.10 points over" in short[2].text
    assert short[0].share == pytest.approx(0.03)
    assert budget.shortfalls(Figures(40_000_000, 30.0, 0.05)) == ()


def test_energy_that_was_not_measured_keeps_no_limit() -> None:
    budget = Budget(max_energy_j=0.5)
    assert budget.shortfalls(Figures(1, 1, 0.0, None))
    assert budget.shortfalls(Figures(1, 1, 0.0, 0.6))
    assert not budget.shortfalls(Figures(1, 1, 0.0, 0.4))


@given(points, st.sampled_from(Prefer))
def test_what_keeps_the_budget_comes_before_what_does_not(
    figures: list[Figures], prefer: Prefer
) -> None:
    budget = Budget(max_size_bytes=3, min_tokens_per_s=2.0, max_ppl_increase=4.0)
    ranked = sorted(figures, key=lambda f: budget.rank(f, prefer))
    kept = [not budget.shortfalls(f) for f in ranked]
    assert kept == sorted(kept, reverse=True)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_size_bytes": 0},
        {"min_tokens_per_s": -1.0},
        {"max_ppl_increase": -0.1},
        {"max_energy_j": float("nan")},
    ],
)
def test_no_budget_and_wrong_ones_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Budget(**limits)  # type: ignore[arg-type]


@given(st.floats(0.001, 2.0) | st.floats(0.001, 99999.0))
def test_a_share_is_read_as_written(value: float) -> None:
    assert parse_share(f"{value:.6f}%") == pytest.approx(value / 100, abs=1e-8)
    if value <= 1.0:
        assert parse_share(f"{value:.6f}") == pytest.approx(value, abs=1e-6)
    else:  # 5 where 5% was meant would be five times the perplexity
        with pytest.raises(UsageError, match=r"Write .*%"):
            parse_share(f"{value:.6f}")


@pytest.mark.parametrize("text", ["", "five", "-5%", "5%%", "nan", "inf", "1e3", "5 %x"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no share"):
        parse_share(text)


def test_sizes_name_the_flag_that_is_wrong() -> None:
    assert parse_size("40MB", "--max-size") == 40_000_000
    with pytest.raises(UsageError, match="--max-size"):
        parse_size("large", "--max-size")


@given(st.integers(1, 10**12))
@example(1_001_000)  # 1.001 times a million is a little less
def test_the_size_that_is_advised_is_enough(size: int) -> None:
    assert size <= parse_size(enough_for(size), "--max-size") <= size + 1000


def test_the_command_line_names_every_order() -> None:
    assert ("search", *(order.value for order in Order)) == _ORDERS


def test_where_speed_decides_the_best_of_those_as_fast_is_chosen(tmp_path: Path) -> None:
    found = {  # tokens/s, perplexity
        "fastest": (1000.0, 0.25),
        "as fast": (930.0, 0.08),
        "slow": (600.0, 0.01),
        "as fast, too large": (990.0, 0.0),
    }
    rows: list[Any] = []
    for name, (speed, increase) in found.items():
        figures = Figures(9 if "large" in name else 1, speed, increase)
        measured = SimpleNamespace(figures=dict.fromkeys([None], figures).__getitem__)
        rows.append(SimpleNamespace(name=name, measured=measured))
    budget = Budget(max_size_bytes=3, max_ppl_increase=0.3)
    for prefer, wanted in ((Prefer.SPEED, "as fast"), (Prefer.QUALITY, "slow")):
        settings = dataclasses.replace(ShrinkSettings(), prefer=prefer)
        job = ShrinkJob(tmp_path, ("text",), tmp_path / "out", budget, settings=settings)
        assert outcome_of(rows, job, cast("Any", None)).chosen == wanted
