"""Thresholds and curves: what they promise on the examples, recounted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from miudo.errors import CheckFailedError, DataError
from miudo.route.calibrating import Rights, for_quality, for_share
from miudo.route.curve import Point, Side, area, best_possible, sweep

DOUBTS = [0.9, 0.1, 0.5, 0.5, 0.7, 0.2, 0.3, 0.8, 0.4, 0.6]
CHEAP = [False, True, True, False, False, True, True, False, True, True]
DEAR = [True, True, True, True, False, True, True, True, False, True]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.45, 0.5, 0.6, 0.99, 1.0])
def test_a_share_is_never_exceeded_and_as_near_as_equals_permit(share: float) -> None:
    made = for_share(DOUBTS, share, floor=0.0)
    passed = sum(doubt > made.threshold for doubt in DOUBTS)
    assert made.passed_on.right == passed
    assert passed <= share * len(DOUBTS) + 1e-9
    more = min((d for d in DOUBTS if d <= made.threshold), default=None)
    if more is not None:
        tied = max(d for d in DOUBTS if d <= made.threshold)
        assert passed + DOUBTS.count(tied) > share * len(DOUBTS)
    assert made.passed_on.low <= made.passed_on.value <= made.passed_on.high
    assert made.quality is None


def test_the_share_holds_on_examples_that_were_not_seen() -> None:
    rng = np.random.default_rng(0)
    made = for_share(rng.random(2000).tolist(), 0.3, floor=0.0)
    unseen = float(np.mean(rng.random(20_000) > made.threshold))
    assert made.passed_on.low - 0.01 <= unseen <= made.passed_on.high + 0.01


def test_a_quality_is_reached_with_the_fewest_passed_on() -> None:
    rights = Rights(CHEAP, DEAR)
    for quality in (0.6, 0.7, 0.8):
        made = for_quality(DOUBTS, quality, floor=0.0, rights=rights)
        assert made.quality is not None
        assert made.quality.value >= quality
        for higher in (d for d in DOUBTS if d > made.threshold):
            passed = [doubt > higher for doubt in DOUBTS]
            right = sum(d if on else c for on, c, d in zip(passed, CHEAP, DEAR, strict=True))
            assert right < quality * len(DOUBTS)


def test_what_no_threshold_reaches_is_said_with_the_best_there_is() -> None:
    with pytest.raises(CheckFailedError, match=r"the best gives 90\.0%"):
        for_quality(DOUBTS, 0.95, floor=0.0, rights=Rights(CHEAP, DEAR))


def test_no_threshold_is_below_the_floor() -> None:
    made = for_share([0.0, 0.0, 1.0], 1.0, floor=0.0)
    assert made.threshold == 0.0
    assert made.passed_on.right == 1


def test_without_examples_there_is_no_threshold() -> None:
    with pytest.raises(DataError):
        for_share([], 0.5, floor=0.0)


def sides(n: int = 400, seed: int = 0) -> tuple[Side, Side, np.ndarray]:
    rng = np.random.default_rng(seed)
    hard = rng.random(n)
    cheap = Side(np.full(n, 1.0), rng.random(n) > hard)
    dear = Side(np.full(n, 4.0), rng.random(n) > hard / 4)
    return cheap, dear, hard


def test_a_curve_goes_from_one_model_to_the_other() -> None:
    cheap, dear, hard = sides()
    points = sweep(hard.tolist(), cheap, dear)
    assert points[0] == Point(1.0, float(cheap.right.mean()), 0.0)
    assert math.isclose(points[-1].cost, 4.0)
    assert math.isclose(points[-1].quality, float(dear.right.mean()))
    assert [p.cost for p in points] == sorted(p.cost for p in points)


def test_a_cascade_pays_for_both() -> None:
    cheap, dear, hard = sides()
    assert math.isclose(sweep(hard.tolist(), cheap, dear, both=True)[-1].cost, 5.0)


def test_equal_doubts_are_passed_on_together() -> None:
    cheap, dear, _ = sides()
    assert [p.passed_on for p in sweep([0.5] * 400, cheap, dear)] == [0.0, 1.0]


def test_who_knows_more_has_more_area_and_lots_have_the_least() -> None:
    cheap, dear, hard = sides()
    lots = np.random.default_rng(9).random(400).tolist()
    straight = (float(cheap.right.mean()) + float(dear.right.mean())) / 2
    blind, seeing, knowing = (
        area(points, 1.0, 4.0)
        for points in (
            sweep(lots, cheap, dear),
            sweep(hard.tolist(), cheap, dear),
            best_possible(cheap, dear),
        )
    )
    assert abs(blind - straight) < 0.03
    assert blind < seeing < knowing


def test_an_area_by_hand() -> None:
    points = [Point(1.0, 0.5, 0.0), Point(2.0, 0.9, 0.5), Point(3.0, 0.7, 1.0)]
    assert math.isclose(area(points, 1.0, 3.0), (0.7 + 0.8) / 2)
    assert math.isclose(area(points[:2], 1.0, 3.0), (0.7 + 0.9) / 2)
    assert math.isclose(area(points, 1.5, 2.0), (0.7 + 0.9) / 2)
