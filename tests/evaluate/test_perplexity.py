import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miudo.engine.fake import FakeEngine
from miudo.errors import CheckFailedError, DataError, UsageError
from miudo.evaluate.perplexity import (
    default_window,
    document_ids,
    domain_perplexities,
    perplexity,
    start_id,
    windows,
)
from miudo.protocol import Tokenizer
from miudo.sampling import log_softmax_at

MakeEngine = Callable[..., FakeEngine]

# Scores pass through float32 on their way; the sum here is in float64.
SCORE_TOLERANCE = 1e-6


@given(st.integers(0, 300), st.integers(2, 60), st.data())
def test_windows_score_each_token_once_with_enough_before_it(
    n: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context - 1))
    scored: list[int] = []
    for i, window in enumerate(windows(n, context, stride)):
        assert 0 <= window.begin < window.first < window.end <= n
        assert window.end - window.begin <= context
        if i:
            assert window.first - window.begin >= context - stride
        scored.extend(range(window.first, window.end))
    assert scored == list(range(1, n))


@pytest.mark.parametrize("stride", [0, 8, 9, -1])
def test_windows_refuse_strides_without_overlap(stride: int) -> None:
    with pytest.raises(UsageError, match="stride"):
        list(windows(20, 8, stride))


def test_perplexity_equals_a_direct_computation(
    make_engine: MakeEngine, letters: Tokenizer
) -> None:
    engine = make_engine()
    documents = ["abcabcabcajjjihgfedcba", "b", "", "ghijabacada"]
    # The model sees three ids back, so every window with that much overlap gives one truth.
    total, count = 0.0, 0
    for text in documents:
        ids = [0, *letters.encode(text)]
        for i in range(1, len(ids)):
            total -= log_softmax_at(engine._logits_of(ids[:i]), ids[i])
            count += 1
    for context, stride in [(64, 32), (8, 4), (6, 3), (7, 1)]:
        found = perplexity(engine, letters, documents, context=context, stride=stride)
        assert found.tokens == count
        assert found.bytes == sum(map(len, documents))
        assert found.documents == 3
        assert found.nll == pytest.approx(total / count, abs=SCORE_TOLERANCE)
        assert found.ppl == pytest.approx(math.exp(total / count), rel=1e-5)
        expected_bits = total / math.log(2) / found.bytes
        assert found.bits_per_byte == pytest.approx(expected_bits, rel=1e-5)
        assert (found.context, found.stride, found.start) == (context, stride, 0)


def test_too_little_overlap_changes_the_number(make_engine: MakeEngine, letters: Tokenizer) -> None:
    text = "abcdefghij" * 5
    wide = perplexity(make_engine(), letters, [text], context=64, stride=32)
    narrow = perplexity(make_engine(), letters, [text], context=3, stride=2)
    assert narrow.tokens == wide.tokens
    assert abs(narrow.nll - wide.nll) > 1e-3


def test_without_a_start_id_the_first_token_and_its_bytes_are_left_out(
    make_engine: MakeEngine, letters: Tokenizer
) -> None:
    engine = make_engine(bos_id=None)
    found = perplexity(engine, letters, ["abcd", "a"])
    assert found.start is None
    assert found.tokens == 3
    assert found.bytes == 3
    assert found.documents == 1


def test_the_first_eos_stands_in_for_a_missing_bos(
    make_engine: MakeEngine, letters: Tokenizer
) -> None:
    config = dataclasses.replace(make_engine(bos_id=None).config, eos_ids=(7, 0))
    assert start_id(config) == 7
    assert document_ids("ab", letters, config) == [7, 1, 2]


def test_a_value_that_is_no_number_is_refused(make_engine: MakeEngine, letters: Tokenizer) -> None:
    engine = make_engine()
    good = engine._logits_of
    engine._logits_of = lambda ids: good(ids) if len(ids) != 3 else np.full(11, np.nan, np.float32)
    with pytest.raises(CheckFailedError, match="token 2 of document 1 is nan"):
        perplexity(engine, letters, ["ab", "abcdef"])


def test_nothing_to_score_is_an_error(make_engine: MakeEngine, letters: Tokenizer) -> None:
    with pytest.raises(DataError, match="no text"):
        perplexity(make_engine(), letters, ["", ""])


def test_a_context_beyond_the_model_is_refused(make_engine: MakeEngine, letters: Tokenizer) -> None:
    with pytest.raises(UsageError, match="2 to 64"):
        perplexity(make_engine(), letters, ["ab"], context=65)


def test_the_default_window_is_the_models_positions(make_engine: MakeEngine) -> None:
    assert default_window(make_engine(max_positions=64).config) == (64, 32)
    assert default_window(make_engine(max_positions=5000).config) == (1024, 512)


def test_domains_together_are_all_their_documents(
    make_engine: MakeEngine, letters: Tokenizer
) -> None:
    one, two = ["abcabcab", "ij"], ["ghijabacada"]
    told: list[int] = []
    domains = domain_perplexities(
        make_engine(), letters, {("one",): one, ("two",): two}, progress=told.append
    )
    assert domains == {
        (): perplexity(make_engine(), letters, [*one, *two]),
        ("one",): perplexity(make_engine(), letters, one),
        ("two",): perplexity(make_engine(), letters, two),
    }
    assert told == [8, 10, 21]
    for empty in ({("one",): one, ("group", "empty"): [""]}, {}):
        with pytest.raises(DataError, match="group, empty: no text" if empty else "^no text"):
            domain_perplexities(make_engine(), letters, empty)


def test_groups_of_domains_have_their_own_figures(
    make_engine: MakeEngine, letters: Tokenizer
) -> None:
    texts = {("g", "a"): ["abcabcab"], ("g", "b"): ["ij"], ("h",): ["ghijabacada"]}
    found = domain_perplexities(make_engine(), letters, texts)
    assert list(found) == [(), ("g",), ("g", "a"), ("g", "b"), ("h",)]
    assert found[("g",)] == perplexity(make_engine(), letters, ["abcabcab", "ij"])


def test_an_adapter_is_asked_for_in_every_window(
    make_engine: MakeEngine, letters: Tokenizer, adapters_asked: list[str | None]
) -> None:
    perplexity(make_engine(), letters, ["abcabcab"], context=4, adapter="mine")
    assert adapters_asked == ["mine"] * 4
