"""Time divided: never more than there is, whoever goes on."""

from hypothesis import given
from hypothesis import strategies as st

from miudo.shrink.halving import FEWEST_STEPS, plan_rounds, rounds_of_steps

costs = st.lists(st.floats(0.01, 20.0), min_size=1, max_size=30)


@given(costs, st.floats(1.0, 1e5), st.floats(0.0, 50.0))
def test_no_choice_of_survivors_takes_more_than_the_time(
    prices: list[float], seconds: float, extra: float
) -> None:
    rounds = plan_rounds(prices, seconds, extra=extra)
    if not rounds:
        return
    live = prices[: rounds[0].candidates]
    spent = 0.0
    for number, planned in enumerate(rounds):
        assert planned.candidates <= len(live)
        # The dearest go on: the worst that can be.
        live = sorted(live, reverse=True)[: planned.candidates]
        if number == 0:
            live = prices[: planned.candidates]
        spent += planned.steps * sum(live)
    spent += rounds[-1].steps * extra
    assert spent <= seconds * (1 + 1e-9)


@given(costs, st.floats(1.0, 1e5))
def test_fewer_candidates_rather_than_fewer_steps(prices: list[float], seconds: float) -> None:
    rounds = plan_rounds(prices, seconds)
    if len(rounds) > 1 or (rounds and rounds[0].candidates > 1):
        assert all(r.steps >= FEWEST_STEPS for r in rounds)
    widths = [r.candidates for r in rounds]
    assert widths == sorted(widths, reverse=True)


def test_too_little_time_for_one_step_gives_no_round() -> None:
    assert plan_rounds([10.0], 5.0) == ()
    assert plan_rounds([], 100.0) == ()


def test_more_time_gives_no_fewer_candidates() -> None:
    widths = [plan_rounds([1.0] * 20, seconds)[0].candidates for seconds in (50, 500, 5000, 5e4)]
    assert widths == sorted(widths)
    assert widths[-1] == 20


def test_given_steps_are_those_of_the_last_round() -> None:
    rounds = rounds_of_steps(12, 90)
    assert [r.candidates for r in rounds] == [12, 4, 3]
    assert [r.steps for r in rounds] == [10, 30, 90]
    assert rounds_of_steps(0, 5) == ()
