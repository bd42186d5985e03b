"""Cleaning and duplicates: what is changed or dropped, and that it is counted."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miudo.data.clean import CleanReport, clean_documents, clean_text
from miudo.data.dedupe import DedupeReport, DedupeSettings, drop_duplicates
from miudo.data.sources import Document
from miudo.errors import ConfigError
from miudo.protocol import Message

STORY = "the quick brown fox jumps over the lazy dog while the old miller sleeps in the sun "
STORY += "and nobody in the village hears the river rise or the church bells ring at noon"


def documents(*texts: str) -> list[Document]:
    return [Document(text, "s", i) for i, text in enumerate(texts)]


def test_cleaning_counts_what_it_changes() -> None:
    report = CleanReport()
    given_text = "a\r\nb\rc\x00\x07\ufeffe\u0301\u2028d\te"
    assert clean_text(given_text, report) == "a\nb\nc\u00e9\nd\te".replace("c\u00e9", "cé")
    assert (report.line_ends, report.characters_removed, report.documents_composed) == (3, 3, 1)


@given(st.text())
def test_clean_text_is_clean_and_stays_so(text: str) -> None:
    once = clean_text(text, CleanReport())
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in once)
    assert clean_text(once, CleanReport()) == once


def test_documents_that_become_empty_are_left_out() -> None:
    report = CleanReport()
    chat = Document("x\r\ny", "s", 2, (Message("user", "x\r\ny"),))
    found = list(clean_documents([*documents("a", "\x00\x01"), chat], report))
    assert [d.text for d in found] == ["a", "x\ny"]
    assert found[1].messages == (Message("user", "x\ny"),)
    assert (report.documents, report.emptied) == (3, 1)


def test_exact_duplicates_are_dropped_and_named() -> None:
    report = DedupeReport()
    found = list(drop_duplicates(documents("a", "b", "a", "a"), report, DedupeSettings(near=None)))
    assert [d.index for d in found] == [0, 1]
    assert [(d.index, d.kept_index) for d in report.exact] == [(2, 0), (3, 0)]
    assert report.documents == 4


def test_near_duplicates_are_dropped_and_others_kept() -> None:
    pytest.importorskip("datasketch")
    near = STORY.replace("noon", "dawn")
    other = " ".join(reversed(STORY.split()))
    report = DedupeReport()
    found = list(drop_duplicates(documents(STORY, near, other, "short", "small"), report))
    assert [d.index for d in found] == [0, 2, 3, 4]
    assert [(d.index, d.kept_index) for d in report.near] == [(1, 0)]
    assert report.near[0].similarity >= 0.8
    assert not report.exact


def test_the_threshold_is_obeyed() -> None:
    pytest.importorskip("datasketch")
    halves = STORY[: len(STORY) // 2] + " something else entirely stands here instead of the rest"
    for near, kept in ((0.95, 2), (0.3, 1)):
        report = DedupeReport()
        settings = DedupeSettings(near=near, shingle=2)
        assert len(list(drop_duplicates(documents(STORY, halves), report, settings))) == kept


@pytest.mark.parametrize("values", [{"near": 0.1}, {"near": 1.1}, {"shingle": 0}])
def test_settings_that_mean_nothing_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        DedupeSettings(**values)  # type: ignore[arg-type]
