import pytest

from miudo.evaluate.accuracy import accuracy, wilson


# Newcombe (1998), table I: the score method without continuity correction, to four places.
@pytest.mark.parametrize(
    ("right", "samples", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_the_interval_is_that_of_published_tables(
    right: int, samples: int, low: float, high: float
) -> None:
    assert wilson(right, samples) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_the_bounds_of_all_and_none_are_exact() -> None:
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_answers_are_counted() -> None:
    found = accuracy([True, False, True, True])
    assert (found.right, found.samples, found.value) == (3, 4, 0.75)
    assert found.low < 0.75 < found.high
