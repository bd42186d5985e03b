"""The count of pages that the scheduler and the fake engine go by is the native core's own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miudo.engine.native import NativeEngine
from miudo.engine.pages import PageBook
from miudo.errors import RequestError
from miudo.protocol import SeqWork, Want

PAGES = 9


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_the_book_counts_as_the_core_does(llama: Any, data: st.DataObject) -> None:
    size = NativeEngine(llama, threads=1).page_bytes
    engine = NativeEngine(llama, threads=1, cache_bytes=PAGES * size + size // 2)
    book = PageBook(PAGES, engine.page_positions)
    open_ones: list[int] = []
    for _ in range(data.draw(st.integers(3, 25))):
        what = data.draw(st.sampled_from(["open", "fork", "truncate", "close", "step", "step"]))
        if what == "open" or not open_ones:
            open_ones.append(engine.open())
            book.open(open_ones[-1])
        elif what == "step":
            chosen = data.draw(st.lists(st.sampled_from(open_ones), unique=True, min_size=1))
            takes = [(k, data.draw(st.sampled_from([1, 5, 31, 32, 33]))) for k in chosen]
            batch = [SeqWork(k, [7] * n, Want.NOTHING) for k, n in takes]
            if any(engine.length(k) + n > llama.config.max_positions for k, n in takes):
                continue
            if book.wanted(takes) > book.free:
                with pytest.raises(
                    RequestError, match=f"cache is full: {book.wanted(takes)} pages"
                ):
                    engine.step(batch)
            else:
                engine.step(batch)
                for k, n in takes:
                    book.take(k, n)
        else:
            k = data.draw(st.sampled_from(open_ones))
            length = data.draw(st.integers(0, engine.length(k)))
            if what == "fork":
                open_ones.append(engine.fork(k, length))
                book.fork(k, open_ones[-1], length)
            elif what == "truncate":
                engine.truncate(k, length)
                book.truncate(k, length)
            else:
                engine.close(k)
                book.close(k)
                open_ones.remove(k)
        assert engine.cache_bytes_used == book.used * size


def test_a_shared_page_is_copied_once_less_than_it_has_owners() -> None:
    book = PageBook(10)
    book.open(1)
    book.take(1, 40)
    book.fork(1, 2, 36)
    book.fork(1, 3, 32)
    assert book.used == 2
    assert book.wanted([(1, 1)]) == book.wanted([(2, 1)]) == book.wanted([(3, 1)]) == 1
    assert book.wanted([(1, 1), (2, 1)]) == 1
    assert book.wanted([(1, 1), (2, 1), (3, 1)]) == 2
    book.take(2, 1)
    assert (book.used, book.wanted([(1, 1)])) == (3, 0)
    book.close(1)
    assert book.used == 2


def test_beyond_the_budget_nothing_is_taken() -> None:
    book = PageBook(2)
    book.open(1)
    with pytest.raises(RequestError, match="3 pages are wanted, 2 are free"):
        book.take(1, 65)
    assert book.free == 2
