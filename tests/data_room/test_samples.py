"""Samples of ids and their packing: nothing lost, nothing twice, nothing silent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miudo.config import ModelConfig
from miudo.data.chats import Conversation
from miudo.data.samples import PackedSamples, make_samples, pack_samples
from miudo.errors import DataError
from miudo.protocol import Message
from miudo.text.answers import Sample
from miudo.text.chat import DEFAULT_TEMPLATE, ChatTemplate
from miudo.text.tokenizer import TextTokenizer, train_bpe

CONFIG = ModelConfig.uniform(
    vocab_size=320, d_model=32, n_layers=1, n_heads=2, d_ff=32, max_positions=256
)
TEMPLATE = ChatTemplate(DEFAULT_TEMPLATE)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_bpe(["hello world"] * 5, vocab_size=300)


def sample(size: int, first: int = 10) -> Sample:
    return Sample(tuple(range(first, first + size)), tuple(i % 2 == 1 for i in range(size)))


def test_a_row_by_hand() -> None:
    rows = pack_samples([sample(4), sample(3, 50)], 8, pad_id=1)
    assert rows.n_blocks(8) == 1
    assert rows.block(0, 8).tolist() == [10, 11, 12, 13, 50, 51, 52, 1, 1]
    counted, segments = rows.block_marks(0, 8)
    # The target at t is the id at t + 1: ids 11, 13 and 51 are counted, never 50 after 13.
    assert counted.tolist() == [True, False, True, False, True, False, False, False]
    assert segments.tolist() == [1, 1, 1, 1, 2, 2, 2, 0]
    assert rows.filled == 7 / 9


@given(st.lists(st.integers(2, 17), min_size=1, max_size=40))
def test_every_sample_lies_whole_in_one_row_once(sizes: list[int]) -> None:
    samples = [sample(size, 100 * i + 100) for i, size in enumerate(sizes)]
    rows = pack_samples(samples, 16, pad_id=1)
    found, counted = [], 0
    for index in range(rows.n_blocks(16)):
        ids = rows.block(index, 16)
        marks, segments = rows.block_marks(index, 16)
        counted += int(marks.sum())
        # The last id has no segment of its own: it belongs to the one before it or is padding.
        whole = np.append(segments, segments[-1] if ids[-1] != 1 else 0)
        found += [tuple(ids[whole == n].tolist()) for n in range(1, int(whole.max()) + 1)]
    assert sorted(found) == sorted(s.ids for s in samples)
    assert counted == sum(sum(s.counted) for s in samples)
    # Best fit never leaves two rows that would go into one.
    fills = sorted(int((rows.block(i, 16) != 1).sum()) for i in range(rows.n_blocks(16)))
    assert len(fills) < 2 or fills[0] + fills[1] > 17


def test_batches_are_a_function_of_seed_and_step() -> None:
    samples = [sample(9, 100 * i) for i in range(5)]
    one, two = (pack_samples(samples, 8, pad_id=0) for _ in range(2))
    assert one.sha256 == two.sha256
    assert one.sha256 != pack_samples(samples[::-1], 8, pad_id=0).sha256
    for step in range(4):
        batch = one.batch(3, step, 2, 8)
        assert np.array_equal(batch, two.batch(3, step, 2, 8))
        counted, segments = one.batch_marks(3, step, 2, 8)
        assert batch.shape == (2, 9)
        assert counted.shape == segments.shape == (2, 8)
    epoch = np.concatenate([one.batch(3, step, 1, 8) for step in range(5)])
    assert sorted(epoch[:, 0].tolist()) == [0, 100, 200, 300, 400]
    assert not np.array_equal(one.batch(4, 0, 5, 8), one.batch(3, 0, 5, 8))


def test_another_length_is_refused() -> None:
    rows: PackedSamples = pack_samples([sample(4)], 8, pad_id=0)
    with pytest.raises(DataError, match="packed into rows of 8, not 9"):
        rows.batch(0, 0, 1, 9)
    with pytest.raises(DataError, match="has 1 rows, not number 1"):
        rows.block(1, 8)


def chat(*contents: str, system: str | None = None) -> Conversation:
    roles = ("user", "assistant") * len(contents)
    turns = tuple(Message(r, c) for r, c in zip(roles, contents, strict=False))
    first = () if system is None else (Message("system", system),)
    return Conversation((*first, *turns), "a.jsonl, line 1")


def test_a_long_conversation_is_cut_between_turns_and_said_so(tokenizer: TextTokenizer) -> None:
    talk = [w for i in range(6) for w in (f"q{i} hello", f"a{i} world")]
    conversation = chat(*talk, system="be kind")
    samples, report = make_samples([conversation], tokenizer, TEMPLATE, CONFIG, 60)
    assert len(samples) > 1
    assert (report.conversations, report.parted, report.samples) == (1, 1, len(samples))
    assert "longer than a row and cut between turns" in report.text()
    said = []
    for made in samples:
        assert len(made.ids) <= 61
        text = tokenizer.decode(made.ids)
        assert text.startswith("be kind")
        learned = [i for i, counted in zip(made.ids, made.counted, strict=True) if counted]
        said += [a for a in tokenizer.decode(learned).split(" world") if a]
    assert said == [f"a{i}" for i in range(6)]  # every answer once
    assert report.counted == sum(sum(s.counted) for s in samples)


def test_an_exchange_that_fits_no_row_is_left_out_by_name(tokenizer: TextTokenizer) -> None:
    conversation = chat("hi", "hello", "tell me", "x" * 90, "bye", "world")
    samples, report = make_samples([conversation], tokenizer, TEMPLATE, CONFIG, 60)
    assert len(samples) == 2
    assert len(report.dropped) == 1
    assert report.dropped[0].startswith("a.jsonl, line 1, messages[3] (")
    assert "1 exchanges did not fit a row and were left out: a.jsonl, line 1" in report.text()
    samples, report = make_samples([conversation], tokenizer, TEMPLATE, CONFIG, 3)
    assert (samples, len(report.dropped)) == ([], 3)


def test_a_template_that_fails_names_the_record(tokenizer: TextTokenizer) -> None:
    template = ChatTemplate("{{ raise_exception('no system') }}")
    with pytest.raises(DataError, match=r"a\.jsonl, line 1"):
        make_samples([chat("a", "b")], tokenizer, template, CONFIG, 60)
