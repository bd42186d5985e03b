"""A tiny character tokenizer and a model with known distributions."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from miudo.adapter import AdapterBook
from miudo.config import ModelConfig
from miudo.engine.fake import FakeEngine
from miudo.protocol import FloatArray

VOCAB = 11


class LetterTokenizer:
    """Letters a to j are ids 1 to 10; id 0 ends a document."""

    vocab_size = VOCAB
    fingerprint = "letters"

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        return [ord(c) - ord("a") + 1 for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + i - 1) for i in ids if i)

    def token_bytes(self, token: int) -> bytes:
        return self.decode([token]).encode()


def known_logits(ids: Sequence[int], salt: int = 0) -> FloatArray:
    """Logits that depend on the last three ids: any wrong window shows."""
    tail = [*ids[-3:], salt]
    seed = sum((i + 1) * 13**k for k, i in enumerate(tail)) % (1 << 31)
    return np.random.default_rng(seed).normal(size=VOCAB).astype(np.float32)


@pytest.fixture
def adapters_asked(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Every adapter that a scripted engine is asked for; it takes any name."""
    asked: list[str | None] = []
    monkeypatch.setattr(AdapterBook, "named", lambda book, name: asked.append(name))
    return asked


@pytest.fixture
def letters() -> LetterTokenizer:
    return LetterTokenizer()


@pytest.fixture
def make_engine() -> Callable[..., FakeEngine]:
    def make(
        salt: int = 0, max_positions: int = 64, bos_id: int | None = 0, vocab_size: int = VOCAB
    ) -> FakeEngine:
        config = ModelConfig.uniform(
            vocab_size=vocab_size,
            d_model=8,
            n_layers=1,
            n_heads=1,
            d_ff=8,
            max_positions=max_positions,
            bos_id=bos_id,
        )
        return FakeEngine(config, lambda ids: known_logits(ids, salt))

    return make
