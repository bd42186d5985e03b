"""What every Engine promises, held against the PyTorch engine and the native one.

The native engine is compared with the PyTorch one in `tests/whole/test_twin.py`; here each
keeps the protocol's promises by itself.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miudo.adapter import AdaptableEngine, Adapter, LowRank, base_fingerprint
from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.decoder.fake_quant import round_activations
from miudo.decoder.torch_engine import TorchEngine
from miudo.engine.fake import FakeEngine, babble
from miudo.engine.native import NativeEngine
from miudo.errors import ModelFileError, RequestError
from miudo.formats.blocks import encode, to_f32
from miudo.formats.model_file import ModelFile
from miudo.protocol import Engine, SamplingSettings, SeqWork, Want
from miudo.sampling import sample
from miudo.tensors import DType, Role, StoredTensor, tensor_table

CONFIG = ModelConfig.uniform(
    n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=97, max_positions=48
)
CACHED_ROUNDING = 1e-4  # the design's bound between cached and whole forward


def torch_engine(decoder: Decoder) -> AdaptableEngine:
    return TorchEngine(decoder)


def native_engine(decoder: Decoder) -> AdaptableEngine:
    model = ModelFile(
        config=decoder.config,
        weights=decoder.to_weights(),
        tokenizer=None,
        chat_template=None,
        record=None,
        architecture="LlamaForCausalLM",
        path=None,
    )
    return NativeEngine(model, threads=1, cache="f32")


def fake_engine(decoder: Decoder) -> AdaptableEngine:
    return FakeEngine(decoder.config, babble(97))


def some_decoder() -> Decoder:
    decoder = Decoder(CONFIG)
    decoder.initialise(5)
    with torch.no_grad():
        for value in decoder.parameters():
            value.mul_(3.0)
    return decoder


@pytest.fixture(params=[torch_engine, native_engine], ids=["torch", "native"])
def engine(request: pytest.FixtureRequest) -> AdaptableEngine:
    make: Callable[[Decoder], AdaptableEngine] = request.param
    return make(some_decoder())


@pytest.fixture(params=[torch_engine, native_engine, fake_engine], ids=["torch", "native", "fake"])
def any_engine(request: pytest.FixtureRequest) -> AdaptableEngine:
    make: Callable[[Decoder], AdaptableEngine] = request.param
    return make(some_decoder())


def adapter(seed: int = 1, rank: int = 4, **changes: Any) -> Adapter:
    rng = np.random.default_rng(seed)
    parts = {}
    for spec in tensor_table(CONFIG):
        if spec.role in (Role.ATTENTION, Role.MLP):
            down = rng.standard_normal((rank, spec.shape[1])).astype(np.float32) * np.float32(0.2)
            up = rng.standard_normal((spec.shape[0], rank)).astype(np.float32) * np.float32(0.5)
            parts[spec.name] = LowRank(down, up, 0.5)
    base = base_fingerprint(CONFIG, some_decoder().to_weights())
    return dataclasses.replace(Adapter(parts, base), **changes)


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


def merged(given: Adapter) -> Decoder:
    """What the adapter says, written into the matrices."""
    decoder = some_decoder()
    weights = decoder.to_weights()
    for name, part in given.parts.items():
        product = part.up.astype(np.float64) @ part.down * part.scale
        value = to_f32(weights[name]) + product
        weights[name] = StoredTensor.from_f32(value.astype(np.float32))
    return Decoder.from_weights(CONFIG, weights)


def test_an_adapter_answers_as_the_merged_model(engine: AdaptableEngine) -> None:
    ids = [(7 * i) % 97 for i in range(48)]
    given = adapter()
    engine.add_adapter("mine", given)
    truth = TorchEngine(merged(given))
    (right,) = truth.step([SeqWork(truth.open(), ids, Want.ALL_LOGITS)])
    want = Want.ALL_LOGITS | Want.SAMPLE
    (out,) = engine.step([SeqWork(engine.open(), ids, want, adapter="mine")])
    (plain,) = engine.step([SeqWork(engine.open(), ids, want)])
    np.testing.assert_allclose(out.logits, right.logits, atol=CACHED_ROUNDING)
    assert plain.logits is not None
    assert np.abs(out.logits - plain.logits).max() > 0.1
    scores, right_scores = engine.score(ids, adapter="mine"), truth.score(ids)
    np.testing.assert_allclose(scores.logprobs, right_scores.logprobs, atol=CACHED_ROUNDING)


def test_every_conversation_of_a_batch_has_its_own_adapter(engine: AdaptableEngine) -> None:
    names = ("one", "two", None, "one")
    engine.add_adapter("one", adapter(1))
    engine.add_adapter("two", adapter(2, rank=7))
    k = [engine.open() for _ in names]
    batch = [
        SeqWork(c, range(9), Want.LAST_LOGITS, adapter=n) for c, n in zip(k, names, strict=True)
    ]
    together = engine.step(batch)
    for name, out in zip(names, together, strict=True):
        work = SeqWork(engine.open(), range(9), Want.LAST_LOGITS, adapter=name)
        (alone,) = engine.step([work])
        np.testing.assert_allclose(out.logits, alone.logits, atol=CACHED_ROUNDING)
    assert np.abs(together[0].logits - together[1].logits).max() > 0.1


def test_a_conversation_keeps_the_adapter_of_its_first_step(any_engine: AdaptableEngine) -> None:
    engine = any_engine
    engine.add_adapter("one", adapter(1))
    engine.add_adapter("two", adapter(2))
    bound, free = engine.open(), engine.open()
    engine.step([SeqWork(bound, [1, 2], adapter="one"), SeqWork(free, [1, 2])])
    for conversation, name in ((bound, "two"), (bound, None), (free, "one")):
        with pytest.raises(RequestError, match="was begun with"):
            engine.step([SeqWork(conversation, [3], adapter=name)])
    engine.step([SeqWork(bound, [3], adapter="one"), SeqWork(free, [3])])
    assert (engine.length(bound), engine.length(free)) == (3, 3)
    with pytest.raises(RequestError, match="is used by"):
        engine.remove_adapter("one")
    engine.truncate(bound, 0)  # nothing of "one" is left in it
    engine.remove_adapter("one")
    engine.step([SeqWork(bound, [3], adapter="two")])
    engine.close(bound)
    engine.remove_adapter("two")
    for call in (engine.remove_adapter, lambda name: engine.score([1, 2], adapter=name)):
        with pytest.raises(RequestError, match="no adapter named 'two'"):
            call("two")


def test_a_refused_first_step_binds_nothing(any_engine: AdaptableEngine) -> None:
    any_engine.add_adapter("mine", adapter())
    first, second = any_engine.open(), any_engine.open()
    none = np.zeros(97, dtype=np.bool_)
    with pytest.raises(RequestError):
        any_engine.step([SeqWork(first, [1], adapter="mine"), SeqWork(second, [1], mask=none)])
    with pytest.raises(RequestError, match="no adapter named"):
        any_engine.step([SeqWork(first, [1], adapter="mine"), SeqWork(second, [1], adapter="x")])
    assert (any_engine.length(first), any_engine.length(second)) == (0, 0)
    any_engine.remove_adapter("mine")
    any_engine.step([SeqWork(first, [1])])


def spoiled(name: str, **changes: Any) -> Adapter:
    given = adapter()
    parts = dict(given.parts)
    parts[name] = dataclasses.replace(parts["layers.0.attn.q.weight"], **changes)
    return dataclasses.replace(given, parts=parts)


Q = "layers.0.attn.q.weight"
NAN = np.full((4, 32), np.nan, np.float32)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (spoiled("layers.2.attn.q.weight"), "layers.2.attn.q.weight is no matrix"),
        (spoiled("embed.weight"), "embed.weight is no matrix"),
        (spoiled("layers.1.mlp.gate.weight"), r"corrects \[32, 32\]"),
        (spoiled(Q, down=NAN), "NaN"),
        (spoiled(Q, scale=float("inf")), "infinity"),
        (spoiled(Q, down=NAN[:3]), "share no rank"),
        (spoiled(Q, down=NAN[0]), "share no rank"),
        (spoiled(Q, up=np.float32(1.0)), "share no rank"),
        (spoiled(Q, down=NAN[:0], up=NAN.T[:, :0]), "rank 0"),
        (spoiled(Q, down=np.ones((5000, 32), "f4"), up=np.ones((32, 5000), "f4")), "rank 5000"),
        (adapter(parts={}), "corrects no matrix"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_leaves_nothing(
    any_engine: AdaptableEngine, given: Adapter, says: str
) -> None:
    with pytest.raises(ModelFileError, match=says):
        any_engine.add_adapter("mine", given)
    with pytest.raises(RequestError, match="no adapter named 'mine'"):
        any_engine.step([SeqWork(any_engine.open(), [1], adapter="mine")])
    any_engine.add_adapter("mine", adapter())
    with pytest.raises(RequestError, match="is there already"):
        any_engine.add_adapter("mine", adapter())
    with pytest.raises(RequestError):
        any_engine.add_adapter("", adapter())


def test_an_adapter_of_another_model_is_refused(engine: AdaptableEngine) -> None:
    with pytest.raises(ModelFileError, match="was trained on the model ffffffffffff"):
        engine.add_adapter("mine", adapter(base="f" * 64))
    engine.add_adapter("mine", adapter(base=None))


def test_the_correction_takes_activations_before_they_are_rounded() -> None:
    ids = list(range(20))
    quantised = {s.name for s in tensor_table(CONFIG) if len(s.shape) == 2}
    decoder = some_decoder()
    weights = {
        name: encode(to_f32(t), DType.Q8_0) if name in quantised else t
        for name, t in decoder.to_weights().items()
    }
    model = ModelFile(CONFIG, weights, None, None, None, "llama", None)
    rounding = round_activations(Decoder.from_weights(CONFIG, weights), quantised)
    native, twin = NativeEngine(model, cache="f32"), TorchEngine(rounding)
    outs = []
    for engine in (native, twin):
        engine.add_adapter("mine", adapter())
        (out,) = engine.step([SeqWork(engine.open(), ids, Want.HIDDEN, adapter="mine")])
        assert out.hidden is not None
        outs.append(out.hidden[1])
    # A float on the other side of a rounding step moves a few values; the many are equal.
    assert np.median(np.abs(outs[0] - outs[1])) < 1e-5


@pytest.mark.parametrize("length", [0, 1, 7, 20])
def test_a_fork_answers_as_if_it_had_read_the_beginning_itself(
    any_engine: AdaptableEngine, length: int
) -> None:
    engine, ids = any_engine, [(5 * i) % 97 for i in range(20)]
    first = engine.open()
    for at in ids:  # one by one, as rounding in PyTorch hangs on the shape
        engine.step([SeqWork(first, [at], Want.NOTHING)])
    second = engine.fork(first, length)
    assert (engine.length(first), engine.length(second)) == (20, length)

    def read(ids: list[int], conversation: int) -> Any:
        outs = [engine.step([SeqWork(conversation, [i], Want.LAST_LOGITS)]) for i in ids]
        return np.stack([out.logits for (out,) in outs])

    alone = read([*ids[:length], 3, 4, 5], engine.open())[-3:]
    np.testing.assert_array_equal(read([3, 4, 5], second), alone)
    np.testing.assert_array_equal(read([6, 7], first), read([*ids, 6, 7], engine.open())[-2:])
    third = engine.fork(second, length + 1)
    engine.close(second)
    engine.truncate(first, 0)
    np.testing.assert_array_equal(read([4, 5], third), alone[1:])


def test_a_fork_has_the_adapter_of_its_positions(any_engine: AdaptableEngine) -> None:
    engine = any_engine
    engine.add_adapter("mine", adapter())
    first = engine.open()
    engine.step([SeqWork(first, [1, 2], adapter="mine")])
    bound, free = engine.fork(first, 1), engine.fork(first, 0)
    engine.close(first)
    with pytest.raises(RequestError, match="is used by"):
        engine.remove_adapter("mine")
    with pytest.raises(RequestError, match="was begun with"):
        engine.step([SeqWork(bound, [3])])
    engine.step([SeqWork(free, [3]), SeqWork(bound, [3], adapter="mine")])
    engine.close(bound)
    engine.remove_adapter("mine")


def test_a_fork_of_what_is_not_there_is_refused(any_engine: AdaptableEngine) -> None:
    k = any_engine.open()
    any_engine.step([SeqWork(k, [1, 2])])
    for length in (3, -1):
        with pytest.raises(RequestError, match=f"length (is )?{length}"):
            any_engine.fork(k, length)
    with pytest.raises(RequestError, match="not open"):
        any_engine.fork(k + 1, 0)


@pytest.fixture(
    params=[torch_engine, native_engine, fake_engine], ids=["torch", "native", "fake"],
    scope="module",
)  # fmt: skip
def kept_engine(request: pytest.FixtureRequest) -> AdaptableEngine:
    make: Callable[[Decoder], AdaptableEngine] = request.param
    return make(some_decoder())


SAMPLINGS = st.sampled_from(
    [
        SamplingSettings(),
        SamplingSettings(repetition_penalty=1.4),
        SamplingSettings(temperature=0.4, seed=5, request=2),
        SamplingSettings(temperature=1.0, top_k=9, top_p=0.9, min_p=0.01, seed=1),
        SamplingSettings(temperature=0.7, repetition_penalty=1.3, logit_bias=((4, 2.0),), seed=3),
    ]
)


def single_steps(
    engine: Engine, prompt: list[int], n: int, sampling: SamplingSettings, mask: Any
) -> list[tuple[int, float]]:
    k, pending, drawn = engine.open(), prompt, []
    for _ in range(n):
        (out,) = engine.step([SeqWork(k, pending, sampling=sampling, mask=mask)])
        drawn.append((out.token, out.logprob))
        pending = [out.token]
    engine.close(k)
    return drawn


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), sampling=SAMPLINGS)
def test_a_draft_changes_no_token(
    kept_engine: Engine, data: st.DataObject, sampling: SamplingSettings
) -> None:
    engine = kept_engine
    prompt = data.draw(st.lists(st.integers(0, 96), min_size=1, max_size=12))
    mask = None
    if data.draw(st.booleans()):
        mask = np.arange(97) % 3 != 1
    right = single_steps(engine, prompt, 12, sampling, mask)
    k, pending, drawn = engine.open(), prompt, []
    while len(drawn) < 12:
        n = data.draw(st.integers(0, 11 - len(drawn)))
        draft = [token for token, _ in right[len(drawn) : len(drawn) + n]]
        wrong = data.draw(st.integers(0, n))  # the first id that is spoiled; n: none
        draft[wrong:] = [(token + 1) % 97 for token in draft[wrong:]]
        work = SeqWork(k, [*pending, *draft], sampling=sampling, mask=mask, n_drafted=n)
        (out,) = engine.step([work])
        assert len(out.tokens) == wrong + 1
        drawn += zip(out.tokens, out.logprobs, strict=True)
        assert engine.length(k) == len(prompt) + len(drawn) - 1
        pending = [out.token]
    assert drawn == right
    engine.close(k)


def test_drafts_that_cannot_be_are_refused(any_engine: AdaptableEngine) -> None:
    k = any_engine.open()
    for ids, n in (([1, 2], 2), ([1], 1), ([1, 2], -1), ([1], 1 << 70)):
        with pytest.raises(RequestError, match="drafted"):
            any_engine.step([SeqWork(k, ids, n_drafted=n)])
    for want in (Want.NOTHING, Want.SAMPLE | Want.LAST_LOGITS):
        with pytest.raises(RequestError, match="wants more than a sample"):
            any_engine.step([SeqWork(k, [1, 2], want, n_drafted=1)])
    with pytest.raises(RequestError, match="positions"):
        any_engine.step([SeqWork(k, [1] * 49, n_drafted=4)])
    assert any_engine.length(k) == 0
