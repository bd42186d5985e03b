"""Log-probabilities: nothing vanishes, every token has its place, and what is no token is none."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from miudo.config import ModelConfig
from miudo.engine.batches import Limits
from miudo.engine.fake import FakeEngine
from miudo.serve.answering import Ask, Piece, TokenChance, answer, chances
from miudo.serve.echo import echoed
from miudo.serve.openai.listing import Listing
from miudo.serve.worker import Worker

ROBOT = "\U0001f916".encode()
PIECES = [b"", b"", b" The", b"re", *(ROBOT[i : i + 1] for i in range(4)), b"re"]
"""Two special ones, a word, its end twice, and a character in four."""
PADDED = len(PIECES) + 3
CONFIG = ModelConfig.uniform(
    n_layers=1, d_model=8, n_heads=1, d_ff=8, vocab_size=PADDED, max_positions=60
)
LOGITS = np.arange(PADDED, dtype=np.float32)
"""Rows that are no tokens are the most probable."""


class Pieces:
    """A tokenizer as SentencePiece's, of PIECES."""

    vocab_size, adds_space = len(PIECES), True

    def token_bytes(self, token: int) -> bytes:
        return PIECES[token]


class Scoring(FakeEngine):
    """Keeps the `top_k` that the fake engine does not."""

    def score(self, ids: Any, *, top_k: int = 0, adapter: str | None = None) -> Any:
        scores = super().score(ids)
        best = np.argsort(-LOGITS)[:top_k]
        rows = (len(ids) - 1, top_k)
        top = {"top_ids": np.broadcast_to(best, rows)}
        return replace(scores, top_logprobs=np.broadcast_to(LOGITS[best], rows), **top)


def test_every_alternative_is_there_whatever_its_text() -> None:
    top = tuple((i, -float(i)) for i in range(len(PIECES)))
    (named,) = Listing(Pieces()).take([TokenChance(2, -1.0, top)])["top_logprobs"]  # type: ignore[arg-type]
    assert named == {
        "token_id:0": 0.0, "token_id:1": -1.0, " The": -2.0, "re": -3.0, "token_id:4": -4.0,
        "token_id:5": -5.0, "token_id:6": -6.0, "token_id:7": -7.0, "token_id:8": -8.0,
    }  # fmt: skip


def test_tokens_lie_where_the_text_has_them() -> None:
    ids = [0, 2, 3, 4, 5, 6, 7, 2]
    text = "There\U0001f916 The"  # the first space is the tokenizer's, not the text's
    listing = Listing(Pieces())  # type: ignore[arg-type]
    parts = [listing.take([TokenChance(i, -1.0)]) for i in ids]  # as they come in a stream
    offsets = [offset for part in parts for offset in part["text_offset"]]
    assert offsets == [0, 0, 3, 5, 5, 5, 5, 6]
    assert text[offsets[2] :].startswith("re")
    assert text[offsets[-1] :] == " The"
    after = Listing(Pieces(), after=[2])  # type: ignore[arg-type]
    assert after.take([TokenChance(2, -1.0), TokenChance(3, -1.0)])["text_offset"] == [0, 4]


def test_the_first_of_an_echo_costs_nothing_that_is_known() -> None:
    made = Listing(Pieces()).take([TokenChance(2, math.nan), TokenChance(3, -0.5)])  # type: ignore[arg-type]
    assert made["token_logprobs"] == [None, -0.5]
    assert made["top_logprobs"] == [None, {}]


def test_rows_that_are_no_tokens_are_among_no_best() -> None:
    size = len(PIECES)
    best = chances(LOGITS, 3, -1.0, 4, n_tokens=size).top
    assert [token for token, _ in best] == [size - 1, size - 2, size - 3, size - 4]
    share = LOGITS[size - 1] - np.log(np.exp(LOGITS.astype(np.float64)).sum())
    assert best[0][1] == pytest.approx(share)  # of all rows: they have theirs


def test_a_padded_vocabulary_breaks_no_answer() -> None:
    async def asked() -> list[Piece]:
        loop = asyncio.get_running_loop()
        limits = Limits(context=60, pages=64, max_positions=16, max_sequences=4)
        worker = Worker(
            FakeEngine(CONFIG, lambda _: LOGITS), limits, post=loop.call_soon_threadsafe
        )
        ask = Ask([2, 3], 3, top=PADDED)
        pieces = [piece async for piece in answer(worker, Pieces(), ask)]  # type: ignore[arg-type]
        worker.close()
        return pieces

    found = [chance for piece in asyncio.run(asked()) for chance in piece.chances]
    assert len(found) == 3
    for chance in found:
        assert sorted(token for token, _ in chance.top) == list(range(len(PIECES)))


def test_a_padded_vocabulary_breaks_no_echo() -> None:
    engine = Scoring(CONFIG, lambda _: LOGITS)
    made = echoed(engine, [2, 3, 4], 2, n_tokens=len(PIECES))
    assert [[token for token, _ in chance.top] for chance in made] == [[], [8, 7], [8, 7]]
