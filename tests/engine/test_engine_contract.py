"""What every Engine promises, held against the PyTorch engine and the native one.

The native engine is compared with the PyTorch one in `tests/whole/test_twin.py`; here each
keeps the protocol's promises by itself.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.decoder.torch_engine import TorchEngine
from miudo.engine.native import NativeEngine
from miudo.errors import RequestError
from miudo.formats.model_file import ModelFile
from miudo.protocol import Engine, SamplingSettings, SeqWork, Want
from miudo.sampling import sample

CONFIG = ModelConfig.uniform(
    n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=97, max_positions=48
)
CACHED_ROUNDING = 1e-4  # the design's bound between cached and whole forward


def torch_engine(decoder: Decoder) -> Engine:
    return TorchEngine(decoder)


def native_engine(decoder: Decoder) -> Engine:
    model = ModelFile(
        config=decoder.config,
        weights=decoder.to_weights(),
        tokenizer_json=None,
        chat_template=None,
        record=None,
        architecture="LlamaForCausalLM",
        path=None,
    )
    return NativeEngine(model, threads=1)


@pytest.fixture(params=[torch_engine, native_engine], ids=["torch", "native"])
def engine(request: pytest.FixtureRequest) -> Engine:
    decoder = Decoder(CONFIG)
    decoder.initialise(5)
    with torch.no_grad():
        for value in decoder.parameters():
            value.mul_(3.0)
    make: Callable[[Decoder], Engine] = request.param
    return make(decoder)


def test_it_is_an_engine(engine: Engine) -> None:
    assert isinstance(engine, Engine)
    assert engine.config == CONFIG


def test_steps_continue_a_conversation(engine: Engine) -> None:
    whole, cut = engine.open(), engine.open()
    (all_at_once,) = engine.step([SeqWork(whole, range(20), Want.ALL_LOGITS)])
    rows = []
    for ids in (range(7), range(7, 8), range(8, 20)):
        (part,) = engine.step([SeqWork(cut, ids, Want.ALL_LOGITS)])
        assert part.logits is not None
        rows.append(part.logits)
    assert all_at_once.logits is not None
    assert all_at_once.logits.shape == (20, 97)
    np.testing.assert_allclose(np.concatenate(rows), all_at_once.logits, atol=CACHED_ROUNDING)
    assert engine.length(whole) == engine.length(cut) == 20


def test_truncate_forgets(engine: Engine) -> None:
    a, b = engine.open(), engine.open()
    engine.step([SeqWork(a, [1, 2, 3, 4, 5], Want.NOTHING)])
    engine.truncate(a, 2)
    (after,) = engine.step([SeqWork(a, [9], Want.LAST_LOGITS)])
    (fresh,) = engine.step([SeqWork(b, [1, 2, 9], Want.LAST_LOGITS)])
    np.testing.assert_allclose(after.logits, fresh.logits, atol=CACHED_ROUNDING)
    assert engine.length(a) == 3


def test_only_what_is_wanted_comes_back(engine: Engine) -> None:
    k = engine.open()
    (nothing,) = engine.step([SeqWork(k, [1], Want.NOTHING)])
    assert (nothing.token, nothing.logits, nothing.hidden, nothing.attention) == (None,) * 4
    want = Want.SAMPLE | Want.LAST_LOGITS | Want.HIDDEN | Want.ATTENTION
    (full,) = engine.step([SeqWork(k, [2, 3], want)])
    assert full.logits is not None
    assert full.hidden is not None
    assert full.attention is not None
    assert full.token == int(full.logits.argmax())
    assert full.logits.shape == (97,)
    assert full.hidden.shape == (3, 2, 32)
    assert [a.shape for a in full.attention] == [(4, 2, 3)] * 2
    probabilities = np.exp(full.logits - full.logits.max())
    expected = np.log(probabilities[full.token] / probabilities.sum())
    assert full.logprob == pytest.approx(expected, abs=1e-5)


def test_the_token_is_the_oracle_s(engine: Engine) -> None:
    settings = SamplingSettings(
        temperature=0.8, top_k=40, top_p=0.9, repetition_penalty=1.3, seed=11, request=4,
        logit_bias=((5, 3.0),),
    )  # fmt: skip
    mask = np.ones(97, dtype=np.bool_)
    mask[20:60] = False
    for start in range(10):
        k = engine.open()
        ids = list(range(start, start + 12))
        want = Want.SAMPLE | Want.LAST_LOGITS
        (out,) = engine.step([SeqWork(k, ids, want, settings, mask)])
        assert out.logits is not None
        oracle = sample(out.logits, settings, position=12, seen=ids, mask=mask)
        assert out.token == oracle
        engine.close(k)


def test_score_is_the_log_softmax_of_steps(engine: Engine) -> None:
    ids = [(7 * i) % 97 for i in range(48)]
    scores = engine.score(ids, top_k=3)
    (out,) = engine.step([SeqWork(engine.open(), ids, Want.ALL_LOGITS)])
    assert out.logits is not None
    rows = out.logits[:-1].astype(np.float64)
    total = np.log(np.exp(rows).sum(1))
    np.testing.assert_allclose(scores.logprobs, rows[range(47), ids[1:]] - total, atol=1e-4)
    np.testing.assert_allclose(scores.logsumexp, total, atol=1e-4)
    np.testing.assert_array_equal(scores.argmax, rows.argmax(1))
    assert scores.top_ids is not None
    assert scores.top_logprobs is not None
    np.testing.assert_array_equal(scores.top_ids[:, 0], rows.argmax(1))
    expected = np.sort(rows, 1)[:, ::-1][:, :3] - total[:, None]
    np.testing.assert_allclose(scores.top_logprobs, expected, atol=1e-4)
    assert engine.score([3]).logprobs.shape == (0,)


@pytest.mark.parametrize(
    ("ids", "says"),
    [([], "no ids"), ([97], "id 97"), ([-1], "id -1"), (list(range(49)), "49 positions")],
)
def test_a_refused_batch_changes_nothing(engine: Engine, ids: list[int], says: str) -> None:
    good, bad = engine.open(), engine.open()
    engine.step([SeqWork(good, [1, 2], Want.NOTHING)])
    with pytest.raises(RequestError, match=says):
        engine.step([SeqWork(good, [3]), SeqWork(bad, ids)])
    assert (engine.length(good), engine.length(bad)) == (2, 0)


def test_unknown_and_repeated_conversations_are_refused(engine: Engine) -> None:
    k = engine.open()
    with pytest.raises(RequestError, match="not open"):
        engine.step([SeqWork(10_000, [1])])
    with pytest.raises(RequestError, match="twice"):
        engine.step([SeqWork(k, [1]), SeqWork(k, [2])])
    engine.close(k)
    for call in (engine.length, engine.close):
        with pytest.raises(RequestError, match="not open"):
            call(k)
    with pytest.raises(RequestError, match="adapter"):
        engine.step([SeqWork(engine.open(), [1], adapter="mine")])


def test_a_mask_that_forbids_everything_is_refused(engine: Engine) -> None:
    first, second = engine.open(), engine.open()
    none = np.zeros(97, dtype=np.bool_)
    with pytest.raises(RequestError, match="no id can be drawn"):
        engine.step([SeqWork(first, [1]), SeqWork(second, [1], mask=none)])
    assert (engine.length(first), engine.length(second)) == (0, 0)


@pytest.mark.parametrize("top_k", [-1, 98])
def test_top_k_outside_the_vocabulary_is_refused(engine: Engine, top_k: int) -> None:
    with pytest.raises(RequestError, match="top_k"):
        engine.score([1, 2], top_k=top_k)


def test_ids_that_are_no_whole_numbers_are_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match="whole numbers"):
        engine.step([SeqWork(engine.open(), [2.7])])  # type: ignore[list-item]


def test_all_positions_can_be_used_and_no_more(engine: Engine) -> None:
    k = engine.open()
    engine.step([SeqWork(k, [i % 97 for i in range(48)])])
    with pytest.raises(RequestError, match="49 positions, the model has 48"):
        engine.step([SeqWork(k, [1])])
