from collections.abc import Callable

import numpy as np
import pytest

from miudo.engine.fake import FakeEngine
from miudo.errors import DataError, UsageError
from miudo.evaluate import divergence as divergence_module
from miudo.evaluate.divergence import divergence

MakeEngine = Callable[..., FakeEngine]

IDS = [0, *([1, 5, 3, 9, 2, 8] * 5)]


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max())
    return e / e.sum()


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_divergence_equals_a_direct_sum(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(divergence_module, "_CHUNK", chunk)
    first, other = make_engine(salt=0), make_engine(salt=1)
    kls, same = [], 0
    for begin in range(0, len(IDS), 16):
        piece = IDS[begin : begin + 16]
        for end in range(1, len(piece) + 1):
            p = _softmax(first._logits_of(piece[:end]))
            q = _softmax(other._logits_of(piece[:end]))
            kls.append(float((p * np.log(p / q)).sum()))
            same += int(p.argmax() == q.argmax())
    found = divergence(first, other, [IDS], context=16)
    assert found.positions == len(IDS)
    assert found.kl == pytest.approx(np.mean(kls), rel=1e-9)
    assert found.kl_max == pytest.approx(max(kls), rel=1e-9)
    assert found.same_top1 == pytest.approx(same / len(IDS))
    assert first.opened == first.closed


def test_a_model_does_not_differ_from_itself(make_engine: MakeEngine) -> None:
    found = divergence(make_engine(), make_engine(), [IDS], context=64)
    assert found.kl == 0.0
    assert found.same_top1 == 1.0


def test_an_adapter_is_asked_for_of_both(
    make_engine: MakeEngine, adapters_asked: list[str | None]
) -> None:
    divergence(make_engine(0), make_engine(1), [IDS], context=64, adapter="mine")
    assert adapters_asked == ["mine"] * 2


def test_other_vocabularies_are_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(UsageError, match="11 and 12"):
        divergence(make_engine(), make_engine(vocab_size=12), [IDS], context=8)


def test_no_ids_is_an_error(make_engine: MakeEngine) -> None:
    with pytest.raises(DataError):
        divergence(make_engine(), make_engine(), [[]], context=8)
