import pytest

from miudo.evaluate import overlap
from miudo.evaluate.overlap import Overlap, find_overlap, overlap_share

WORDS = [f"w{i}" for i in range(40)]


def text(begin: int, end: int) -> str:
    return " ".join(WORDS[begin:end])


@pytest.mark.parametrize(
    ("sample", "training", "expected"),
    [
        (text(0, 20), text(5, 18), True),  # 13 words in common
        (text(0, 20), text(5, 17), False),  # 12
        (text(0, 13), text(0, 12), False),
        (text(0, 12), text(2, 10), True),  # a sample of 12 words: 8 are enough
        (text(0, 12), text(2, 9), False),
        (text(0, 8), text(0, 8), True),
        (text(0, 7), text(0, 7), None),  # too short to tell
        ("", text(0, 7), None),
        ("W0, w1: w2 (w3)\nw4 -- w5; W6_w7!", text(0, 8), True),  # case and punctuation
        (text(0, 20), text(18, 20) + " " + text(0, 12), False),
    ],
)
def test_a_run_of_words_in_common_is_found(
    sample: str, training: str, expected: bool | None
) -> None:
    assert find_overlap([sample], ["other text", f"before {training} after"]) == [expected]


def test_a_run_across_two_documents_is_none() -> None:
    assert find_overlap([text(0, 13)], [text(0, 6), text(6, 13)]) == [False]


def test_a_run_across_two_batches_of_a_document_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_BATCH_WORDS", 5)
    long, short = text(10, 30), text(20, 29)
    samples = [long, short, text(30, 40)[::-1]]
    assert find_overlap(samples, [text(0, 40)]) == [True, True, False]


def test_each_sample_gets_its_own_answer() -> None:
    samples = [text(0, 14), text(3, 7), text(14, 30), text(5, 20)]
    assert find_overlap(samples, [text(4, 22)]) == [False, None, False, True]
    assert find_overlap([], ["x"]) == []
    assert find_overlap(["a b"], iter(())) == [None]


def test_shares_leave_out_what_was_too_short() -> None:
    assert overlap_share([True, None, False, False, False]) == Overlap(1, 4, 1, 0.25)
    assert overlap_share([None]) == Overlap(0, 0, 1, 0.0)
