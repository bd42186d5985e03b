"""The sampler against a naive one of its own, against statistics, and at its edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from miudo import sampling
from miudo.errors import RequestError
from miudo.protocol import SamplingSettings
from miudo.sampling import log_softmax_at, sample

# How near to a border between two ids a point may lie before rounding decides; the sums here
# have at most 12 terms of at most 1, so their error is far below it.
BORDER = 1e-12


def array(values: Sequence[float]) -> npt.NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def naive(logits: Sequence[float], settings: SamplingSettings, point: float) -> int | None:
    """The filters of the docstring, one by one on a list; None when `point` is on a border."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if settings.top_k:
        order = order[: settings.top_k]
    top = logits[order[0]]
    weights = [math.exp((logits[i] - top) / settings.temperature) for i in order]
    total = math.fsum(weights)
    kept = [i for i in range(len(order)) if math.fsum(weights[:i]) < settings.top_p * total]
    edges = [abs(math.fsum(weights[:i]) - settings.top_p * total) for i in range(1, len(order))]
    kept = [i for i in kept if weights[i] >= settings.min_p * weights[0]]
    edges += [abs(w - settings.min_p * weights[0]) for w in weights[1:]]
    target, passed = point * math.fsum(weights[i] for i in kept), 0.0
    chosen = None
    for i in sorted(kept, key=lambda i: order[i]):  # what is left is drawn from by id
        passed += weights[i]
        edges.append(abs(passed - target))
        if chosen is None and passed > target:
            chosen = order[i]
    return None if min(edges, default=1.0) < BORDER else chosen


finite = st.floats(-20, 20, width=32)


@given(
    st.lists(finite, min_size=1, max_size=12, unique=True),
    st.floats(0.2, 3.0),
    st.integers(0, 12),
    st.floats(0.05, 1.0),
    st.floats(0.0, 0.9),
    st.integers(0, 2**64 - 1),
    st.integers(0, 1000),
)
def test_the_draw_is_that_of_a_naive_sampler(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float,
    seed: int, position: int,
) -> None:  # fmt: skip
    settings = SamplingSettings(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
    )
    point = sampling.uniform(seed, 0, position)
    expected = naive(logits, settings, point)
    assume(expected is not None)
    assert sample(array(logits), settings, position=position) == expected


PROBABILITIES = (0.4, 0.25, 0.15, 0.1, 0.06, 0.04)
DRAWS = 100_000
# Chi-square with five degrees of freedom exceeds this once in a million fair samplers.
CHI_SQUARE = 36.0


def test_frequencies_are_the_softmax() -> None:
    logits = array(np.log(PROBABILITIES).tolist())
    settings = SamplingSettings(temperature=1.0, seed=11)
    drawn = [sample(logits, settings, position=i) for i in range(DRAWS)]
    counts = np.bincount(drawn, minlength=6)
    expected = np.array(PROBABILITIES) * DRAWS
    assert float(((counts - expected) ** 2 / expected).sum()) < CHI_SQUARE


def test_frequencies_under_temperature_and_top_p() -> None:
    logits = array(np.log(PROBABILITIES).tolist())
    settings = SamplingSettings(temperature=2.0, top_p=0.8, seed=12)
    drawn = [sample(logits, settings, position=i) for i in range(20_000)]
    roots = np.sqrt(np.array(PROBABILITIES))
    # Masses before each id: 0, .28, .51, .68, .83, .94 of the whole: four are kept.
    kept = roots[:4] / roots[:4].sum() * 20_000
    counts = np.bincount(drawn, minlength=6)
    assert counts[4:].sum() == 0
    assert float(((counts[:4] - kept) ** 2 / kept).sum()) < CHI_SQUARE


def support(logits: Sequence[float], **settings: Any) -> set[int]:
    chosen = SamplingSettings(temperature=1.0, seed=5, **settings)
    return {sample(array(logits), chosen, position=i) for i in range(400)}


FLAT = [0.0, 0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 1}, {3}),
        ({"top_k": 2}, {2, 3}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 1e-6}, {3}),
        ({"top_p": 0.5}, {2, 3}),
        ({"min_p": 1.0}, {3}),
        ({"min_p": 0.85}, {2, 3}),  # exp(-0.1) is 0.905, exp(-0.2) is 0.819
        ({"logit_bias": ((3, -1e4),)}, {0, 1, 2}),
        ({"logit_bias": ((0, 1e4),)}, {0}),
        ({"logit_bias": ((77, 1e4),)}, {0, 1, 2, 3}),
    ],
)
def test_each_filter_keeps_what_it_says(settings: dict[str, Any], ids: set[int]) -> None:
    assert support(FLAT, **settings) == ids


GREEDY = SamplingSettings()


def test_temperature_zero_takes_the_best_and_the_lowest_of_equals() -> None:
    assert sample(array([0, 3, 1]), GREEDY, position=0) == 1
    assert sample(array([2, 3, 3, 3]), GREEDY, position=9) == 1


def test_equal_logits_fill_top_k_from_the_lowest_id() -> None:
    assert support([1.0, 1.0, 1.0, 1.0], top_k=2) == {0, 1}


def test_the_mask_forbids_also_what_the_bias_would_raise() -> None:
    mask = np.array([True, True, False, False])
    biased = SamplingSettings(logit_bias=((2, 1e4),))
    assert sample(array(FLAT), GREEDY, position=0, mask=mask) == 1
    assert sample(array(FLAT), biased, position=0, mask=mask) == 1
    hot = SamplingSettings(temperature=50.0)
    drawn = {sample(array(FLAT), hot, position=i, mask=mask) for i in range(200)}
    assert drawn == {0, 1}


def test_repetition_divides_positive_and_multiplies_negative_logits() -> None:
    penalised = SamplingSettings(repetition_penalty=2.0)
    assert sample(array([4.0, 3.0]), penalised, position=0, seen=[0, 0, 0]) == 1
    assert sample(array([4.0, 1.9]), penalised, position=0, seen=[0]) == 0  # 4 / 2 > 1.9
    assert sample(array([-1.0, -1.5]), penalised, position=0, seen=[0]) == 1  # -2 < -1.5
    assert sample(array([4.0, 3.0]), penalised, position=0) == 0


def test_bias_comes_before_the_penalty() -> None:
    settings = SamplingSettings(repetition_penalty=2.0, logit_bias=((0, 5.0),))
    # (-1 + 5) / 2 = 2 beats 1.5; the other order would give -2 + 5 = 3 and hide the difference
    # from 2.5: that id must win.
    assert sample(array([-1.0, 1.5]), settings, position=0, seen=[0]) == 0
    assert sample(array([-1.0, 2.5]), settings, position=0, seen=[0]) == 1


def test_what_cannot_be_drawn_is_refused() -> None:
    for logits in ([math.nan, math.nan], [-math.inf, -math.inf], [math.inf, 0.0]):
        with pytest.raises(RequestError, match="no id can be drawn"):
            sample(array(logits), GREEDY, position=0)
    with pytest.raises(RequestError, match="no id can be drawn"):
        sample(array(FLAT), GREEDY, position=0, mask=np.zeros(4, dtype=bool))


@given(
    st.lists(st.floats(width=32) | finite, min_size=1, max_size=8),
    st.sampled_from([0.0, 1e-6, 1.0, 100.0]),
    st.sampled_from([0.01, 1.0, 100.0]),
    st.booleans(),
)
def test_any_logits_give_a_finite_id_or_a_typed_error(
    logits: list[float], temperature: float, penalty: float, filtered: bool
) -> None:
    settings = SamplingSettings(
        temperature=temperature,
        repetition_penalty=penalty,
        top_p=0.5 if filtered else 1.0,
        min_p=0.5 if filtered else 0.0,
    )
    with np.errstate(invalid="ignore", over="ignore"):
        values = array(logits)
    try:
        chosen = sample(values, settings, position=0, seen=[0])
    except RequestError:
        return
    assert math.isfinite(values[chosen])


def test_the_draw_depends_on_seed_request_and_position_alone() -> None:
    logits = array(np.linspace(0, 1, 50).tolist())
    one = SamplingSettings(temperature=1.0, seed=1)
    first = [sample(logits, one, position=i) for i in range(50)]
    assert first == [sample(logits.copy(), one, position=i) for i in range(50)]
    other = SamplingSettings(temperature=1.0, seed=1, request=1)
    assert first != [sample(logits, other, position=i) for i in range(50)]


def test_logits_are_left_as_they_were() -> None:
    logits = array(FLAT)
    settings = SamplingSettings(temperature=1.0, repetition_penalty=3.0, logit_bias=((0, 9.0),))
    sample(logits, settings, position=0, seen=[1], mask=np.array([True, True, True, False]))
    assert logits.tolist() == array(FLAT).tolist()


def test_log_probability_is_that_of_the_softmax() -> None:
    logits = array(np.log(PROBABILITIES).tolist())
    for token, probability in enumerate(PROBABILITIES):
        # Logits are float32: seven digits.
        assert log_softmax_at(logits, token) == pytest.approx(math.log(probability), abs=1e-6)
    assert log_softmax_at(array([1e30, 0.0]), 0) == 0.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", 1e-9),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", True),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.nan),
        ("logit_bias", ((-1, 0.0),)),
        ("logit_bias", ((0, math.nan),)),
        ("logit_bias", ((0, 1e5),)),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.0),
        ("request", -1),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{field}.* is .*, allowed "):
        SamplingSettings(**{field: value})
