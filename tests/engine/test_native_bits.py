"""The same bits whatever the batch, the place in it, threads, chunks, and neighbours.

Every comparison here is exact. A conversation's logits are a function of its ids alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from miudo.config import LatentAttention, ModelConfig, Position
from miudo.decoder.decoder import Decoder
from miudo.decoder.torch_engine import TorchEngine
from miudo.engine.native import CACHE_TYPES, CacheType, NativeEngine
from miudo.formats import open_model
from miudo.hub.resolve import embedded_path
from miudo.protocol import SamplingSettings, SeqWork, Want
from miudo.sampling import sample
from miudo.tensors import DType
from miudo.text.tokenizer import TextTokenizer

Floats = npt.NDArray[np.float32]
LICENSE = Path(__file__).resolve().parents[2] / "LICENSE"
EMBEDDED = embedded_path()
LENGTH = 90  # past two tiles of 32 positions, and into a third


def ids_of(config: ModelConfig, seed: int, length: int = LENGTH) -> list[int]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, length).tolist()


def fed(
    engine: NativeEngine, ids: Sequence[int], cuts: Sequence[int] = (), adapter: str | None = None
) -> Floats:
    """Returns logits [T, V] of a fresh conversation that takes `ids` in at `cuts`."""
    k = engine.open()
    bounds = [0, *cuts, len(ids)]
    rows = []
    for start, end in itertools.pairwise(bounds):
        (out,) = engine.step([SeqWork(k, ids[start:end], Want.ALL_LOGITS, adapter=adapter)])
        assert out.logits is not None
        rows.append(out.logits)
    engine.close(k)
    return np.concatenate(rows)


@dataclasses.dataclass(frozen=True)
class Way:
    """One way through the engine that keeps its bits."""

    dtype: DType = DType.Q8_0
    activations: Literal["int8", "float"] = "int8"
    cache: CacheType | None = None
    isa: str | None = None


WAYS = {
    "f32": Way(DType.F32, cache="f32"),
    "q4": Way(DType.Q4_1),
    "q8 float": Way(activations="float"),
    "q8 int8": Way(),
    "bf16 cache": Way(cache="bf16"),
    "int8 cache": Way(cache="int8"),
    "int4 cache": Way(cache="int4"),
    "avx2 int8": Way(isa="avx2"),
    "portable int8": Way(isa="portable"),
    "portable int8 cache": Way(cache="int8", isa="portable"),
    "avx2 int4 cache": Way(cache="int4", isa="avx2"),
    "portable int4 cache": Way(cache="int4", isa="portable"),
}


@pytest.fixture(params=WAYS)
def make_engine(
    request: pytest.FixtureRequest,
    llama_q8: Any,
    make_model: Callable[..., Any],
    force_isa: Callable[[str | None], None],
) -> Callable[[int], NativeEngine]:
    way = WAYS[request.param]
    force_isa(way.isa)
    model = make_model(llama_q8.config, seed=6, dtype=way.dtype)
    return lambda threads: NativeEngine(
        model, threads=threads, activations=way.activations, cache=way.cache
    )


def test_thread_count(make_engine: Callable[[int], NativeEngine]) -> None:
    engines = [make_engine(n) for n in (1, 2, 3)]
    ids = ids_of(engines[0].config, 1)
    one, two, three = (fed(e, ids) for e in engines)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, three)


def test_chunks_of_a_prompt(make_engine: Callable[[int], NativeEngine]) -> None:
    engine = make_engine(2)
    ids = ids_of(engine.config, 2)
    whole = fed(engine, ids)
    np.testing.assert_array_equal(whole, fed(engine, ids, range(1, LENGTH)))  # one by one
    for cuts in ([32, 64], [31, 33, 65], [1, 7, 50], [89]):
        np.testing.assert_array_equal(whole, fed(engine, ids, cuts))


def test_chunks_in_every_kind_of_model(config: ModelConfig, make_model: Callable[..., Any]) -> None:
    engine = NativeEngine(make_model(config), threads=1)
    ids = ids_of(config, 3)
    whole = fed(engine, ids)
    np.testing.assert_array_equal(whole, fed(engine, ids, [1, 5, 6, 40, 41, 75]))


@pytest.mark.parametrize("isa", ["portable", None])
def test_company_and_threads_in_every_kind_of_model(
    family: ModelConfig,
    make_model: Callable[..., Any],
    isa: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if isa:
        monkeypatch.setenv("MIUDO_ISA", isa)
    model, ids = make_model(family), ids_of(family, 3)
    alone = fed(NativeEngine(model, threads=1), ids)
    engine = NativeEngine(model, threads=3)
    k = [engine.open() for _ in range(3)]
    prompts = [ids_of(family, 5, 13), ids[:70], ids_of(family, 6, 40)]
    want = Want.ALL_LOGITS | Want.HIDDEN | Want.ATTENTION
    batch = [SeqWork(c, p, want) for c, p in zip(k, prompts, strict=True)]
    np.testing.assert_array_equal(engine.step(batch)[1].logits, alone[:70])
    for at in range(70, 75):
        batch = [SeqWork(c, [ids[at]], Want.LAST_LOGITS) for c in k]
        np.testing.assert_array_equal(engine.step(batch)[1].logits, alone[at])
    engine.truncate(k[1], 33)
    (out,) = engine.step([SeqWork(k[1], ids[33:], Want.ALL_LOGITS)])
    np.testing.assert_array_equal(out.logits, alone[33:])


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_latents_of_stored_blocks(
    make_model: Callable[..., Any], activations: Literal["int8", "float"]
) -> None:
    """Ranks above all other widths: what is rounded on the way must have its space."""
    config = ModelConfig.uniform(
        n_layers=2, d_model=64, n_heads=4, head_dim=16, d_ff=96, vocab_size=67, max_positions=128,
        position=Position.NONE, latent=LatentAttention(kv_rank=160, rope_dim=6, q_rank=224),
    )  # fmt: skip
    model, ids = make_model(config, dtype=DType.Q8_0), ids_of(config, 3)
    one, two = (NativeEngine(model, threads=n, activations=activations) for n in (1, 2))
    whole = fed(one, ids)
    np.testing.assert_array_equal(whole, fed(two, ids, [1, 5, 6, 40, 41, 75]))
    truth = TorchEngine(Decoder.from_weights(config, model.weights))
    (right,) = truth.step([SeqWork(truth.open(), ids, Want.ALL_LOGITS)])
    # Rounded activations move the logits by some per cent.
    bound = 1e-4 if activations == "float" else 0.5
    np.testing.assert_allclose(whole, right.logits, rtol=0, atol=bound)


def test_company_and_place_in_a_batch(make_engine: Callable[[int], NativeEngine]) -> None:
    engine = make_engine(2)
    ids = ids_of(engine.config, 4)
    alone = fed(engine, ids)
    for place in range(4):
        k = [engine.open() for _ in range(4)]
        others = [ids_of(engine.config, 50 + i, 3 + 17 * i) for i in range(4)]
        prompts = [ids[:60] if i == place else others[i] for i in range(4)]
        batch = [SeqWork(c, p, Want.ALL_LOGITS) for c, p in zip(k, prompts, strict=True)]
        first = engine.step(batch)[place].logits
        assert first is not None
        np.testing.assert_array_equal(first, alone[:60])
        for at in range(60, 70):  # then one id each, as a server decodes
            batch = [SeqWork(c, [ids[at] if i == place else 1]) for i, c in enumerate(k)]
            batch[place] = SeqWork(k[place], [ids[at]], Want.LAST_LOGITS)
            np.testing.assert_array_equal(engine.step(batch)[place].logits, alone[at])


def test_truncate_and_step_again(make_engine: Callable[[int], NativeEngine]) -> None:
    engine = make_engine(1)
    ids = ids_of(engine.config, 5)
    right = fed(engine, ids)
    k = engine.open()
    for keep in (70, 64, 33, 32, 1, 0):
        engine.step([SeqWork(k, ids_of(engine.config, 60 + keep), Want.NOTHING)])
        engine.truncate(k, 0)
        engine.step([SeqWork(k, ids, Want.NOTHING)])
        engine.truncate(k, keep)
        (out,) = engine.step([SeqWork(k, ids[keep:], Want.ALL_LOGITS)])
        np.testing.assert_array_equal(out.logits, right[keep:])
        engine.truncate(k, 0)


def test_a_neighbour_that_leaves_its_pages_behind(
    make_engine: Callable[[int], NativeEngine],
) -> None:
    engine = make_engine(1)
    ids = ids_of(engine.config, 7)
    right = fed(engine, ids)
    mine, neighbour = engine.open(), engine.open()
    engine.step([SeqWork(mine, ids[:40]), SeqWork(neighbour, ids_of(engine.config, 8))])
    engine.close(neighbour)
    (out,) = engine.step([SeqWork(mine, ids[40:], Want.ALL_LOGITS)])
    np.testing.assert_array_equal(out.logits, right[40:])


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 70])
def test_a_shared_prefix(make_engine: Callable[[int], NativeEngine], length: int) -> None:
    """Forks and what they came from go on side by side, each with the bits of one alone."""
    engine = make_engine(2)
    common = ids_of(engine.config, 12, 70)
    ends = [ids_of(engine.config, 70 + i, 20) for i in range(4)]
    first = engine.open()
    engine.step([SeqWork(first, common, Want.NOTHING)])
    k = [engine.fork(first, length) for _ in range(3)]
    k.append(engine.fork(k[0], length))
    pages = engine.cache_bytes_used
    rows: list[list[Floats]] = [[] for _ in k]
    for start, end in ((0, 3), (3, 4), (4, 20)):
        batch = [
            SeqWork(c, own[start:end], Want.ALL_LOGITS) for c, own in zip(k, ends, strict=True)
        ]
        for own, out in zip(rows, engine.step([*batch, SeqWork(first, [1])]), strict=False):
            assert out.logits is not None
            own.append(out.logits)
        engine.truncate(first, length)  # back into a page that the others begin with
    for own, end in zip(rows, ends, strict=True):
        right = fed(engine, common[:length] + end)
        np.testing.assert_array_equal(np.concatenate(own), right[length:])
    (out,) = engine.step([SeqWork(first, common[length:] + ends[0], Want.ALL_LOGITS)])
    np.testing.assert_array_equal(out.logits, fed(engine, common + ends[0])[length:])
    for c in (first, *k):
        assert pages > 0 < engine.cache_bytes_used
        engine.close(c)
    assert engine.cache_bytes_used == 0


def test_what_is_watched(make_engine: Callable[[int], NativeEngine]) -> None:
    """Looking at hidden states and attention does not change what is seen."""
    engine = make_engine(2)
    ids = ids_of(engine.config, 9)
    k = engine.open()
    want = Want.ALL_LOGITS | Want.HIDDEN | Want.ATTENTION
    (first,) = engine.step([SeqWork(k, ids[:50], want)])
    (second,) = engine.step([SeqWork(k, ids[50:], want)])
    assert first.logits is not None
    assert second.logits is not None
    assert second.attention is not None
    np.testing.assert_array_equal(np.concatenate([first.logits, second.logits]), fed(engine, ids))
    assert second.attention[0].shape == (4, 40, 90)
    np.testing.assert_allclose(second.attention[0].sum(-1), 1, rtol=1e-5)


def test_score_and_step_agree(make_engine: Callable[[int], NativeEngine]) -> None:
    engine = make_engine(2)
    ids = ids_of(engine.config, 10)
    scores = engine.score(ids, top_k=5)
    logits = fed(engine, ids)[:-1]
    np.testing.assert_array_equal(scores.argmax, logits.argmax(1))
    assert scores.top_ids is not None
    order = np.lexsort((np.broadcast_to(np.arange(logits.shape[1]), logits.shape), -logits))
    np.testing.assert_array_equal(scores.top_ids, order[:, :5])
    k = engine.open()
    (out,) = engine.step([SeqWork(k, ids[:-1], Want.SAMPLE)])
    assert out.token == scores.argmax[-1]
    assert scores.top_logprobs is not None
    assert np.float32(out.logprob) == scores.top_logprobs[-1, 0]


def test_a_long_prompt_crosses_the_engine_s_own_chunks(make_model: Callable[..., Any]) -> None:
    config = ModelConfig.uniform(
        n_layers=1, d_model=16, n_heads=2, d_ff=32, vocab_size=40, max_positions=700, window=300
    )
    engine = NativeEngine(make_model(config), threads=2)
    ids = ids_of(config, 11, 700)
    whole = fed(engine, ids)
    np.testing.assert_array_equal(whole, fed(engine, ids, [255, 256, 257, 600]))
    np.testing.assert_array_equal(engine.score(ids).argmax, whole.argmax(1)[:-1])
    k = [engine.open() for _ in range(3)]
    outs = engine.step([SeqWork(c, ids[: 250 + c], Want.LAST_LOGITS) for c in k])
    for c, out in zip(k, outs, strict=True):
        np.testing.assert_array_equal(out.logits, whole[250 + c - 1])


@pytest.mark.parametrize("isa", ["portable", None])
@pytest.mark.parametrize("cache", CACHE_TYPES)
@pytest.mark.parametrize("window", [None, 520])
def test_stretches_of_a_long_text_on_any_number_of_threads(
    make_model: Callable[..., Any],
    cache: CacheType,
    window: int | None,
    isa: str | None,
    force_isa: Callable[[str | None], None],
) -> None:
    """One key-value head: with more threads than heads a position's stretches are shared out."""
    force_isa(isa)
    config = ModelConfig.uniform(
        n_layers=2, d_model=32, n_heads=3, n_kv_heads=1, head_dim=24, d_ff=32, vocab_size=40,
        max_positions=1040, window=window,
    )  # fmt: skip
    model, ids = make_model(config), ids_of(config, 11, 1040)
    engines = [NativeEngine(model, threads=n, cache=cache) for n in (1, 2, 3)]
    whole = fed(engines[0], ids)
    singles = [511, 512, 513, 700, 701, 1023, 1024, 1025, 1039]
    for engine in engines[1:]:
        np.testing.assert_array_equal(whole, fed(engine, ids, singles))


def test_sampled_text_is_the_same_in_any_company(
    make_engine: Callable[[int], NativeEngine],
) -> None:
    engine = make_engine(2)
    settings = SamplingSettings(temperature=0.9, top_p=0.95, seed=3, request=1)

    def tokens(company: int) -> list[int]:
        k = [engine.open() for _ in range(company + 1)]
        batch = [SeqWork(c, [5, 6, 7 + i], sampling=settings) for i, c in enumerate(k)]
        batch[-1] = SeqWork(k[-1], [5, 6, 7], sampling=settings)
        written = []
        for _ in range(30):
            outs = engine.step(batch)
            written.append(outs[-1].token)
            batch = [SeqWork(o.conversation, [o.token or 0], sampling=settings) for o in outs]
        return [t for t in written if t is not None]

    alone = tokens(0)
    assert len(alone) == 30
    assert alone == tokens(1) == tokens(4)


def test_instruction_sets_agree_in_the_most_probable_id(
    llama_q8: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = NativeEngine(llama_q8, threads=1)
    monkeypatch.setenv("MIUDO_ISA", "portable")
    portable = NativeEngine(llama_q8, threads=1)
    assert portable.isa == "portable"
    same = []
    for seed in range(12):
        ids = ids_of(llama_q8.config, seed, 150)
        same.append(fed(best, ids).argmax(1) == fed(portable, ids).argmax(1))
    assert np.mean(same) >= 0.999  # the design's bound


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_instruction_sets_agree_on_text(
    activations: Literal["int8", "float"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trained model and text that it is in doubt about, which random ids are not."""
    model = open_model(EMBEDDED)
    assert model.tokenizer is not None
    ids = TextTokenizer(model.tokenizer).encode(LICENSE.read_text("utf-8"))[:1280]
    assert len(ids) == 1280
    best = NativeEngine(model, threads=1, activations=activations)
    monkeypatch.setenv("MIUDO_ISA", "portable")
    portable = NativeEngine(model, threads=1, activations=activations)
    windows = [ids[i : i + 128] for i in range(0, len(ids), 128)]
    same = [fed(best, w).argmax(1) == fed(portable, w).argmax(1) for w in windows]
    assert np.mean(same) >= 0.999


def test_threads_of_python_that_share_an_engine(
    make_engine: Callable[[int], NativeEngine],
) -> None:
    engine = make_engine(2)
    prompts = [ids_of(engine.config, seed, 30 + seed) for seed in range(6)]
    alone = [fed(engine, ids) for ids in prompts]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda ids: fed(engine, ids, range(1, len(ids))), prompts))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def adapted(
    make_engine: Callable[[int], NativeEngine],
    make_model: Callable[..., Any],
    make_adapter: Callable[..., Any],
) -> Callable[[int], NativeEngine]:
    """Engines that were given the adapters "a" and "b"; a few rows of a step share a kernel."""

    def make(threads: int) -> NativeEngine:
        engine = make_engine(threads)
        model = make_model(engine.config, seed=6)
        for name, rank in (("a", 3), ("b", 21)):
            engine.add_adapter(name, make_adapter(model, seed=rank, rank=rank))
        return engine

    return make


def test_adapters_in_any_company_chunk_and_thread(adapted: Callable[[int], NativeEngine]) -> None:
    engines = [adapted(n) for n in (1, 2, 3)]
    ids = ids_of(engines[0].config, 12)
    plain, a, b = (fed(engines[0], ids, adapter=name) for name in (None, "a", "b"))
    assert np.abs(a - plain).max() > 0.1 < np.abs(a - b).max()
    for engine in engines:
        for name, right in ((None, plain), ("a", a), ("b", b)):
            for cuts in (range(1, LENGTH), [1, 7, 50], [89]):
                np.testing.assert_array_equal(right, fed(engine, ids, cuts, name))
        order = ["b", None, "a", "b", "a", None, "a"]
        k = [engine.open() for _ in order]
        for start, end in ((0, 60), (60, 61), (61, 70)):
            batch = [
                SeqWork(c, ids[start:end], Want.ALL_LOGITS, adapter=name)
                for c, name in zip(k, order, strict=True)
            ]
            for out, name in zip(engine.step(batch), order, strict=True):
                right = {None: plain, "a": a, "b": b}[name]
                np.testing.assert_array_equal(out.logits, right[start:end])


def test_a_conversation_without_an_adapter_keeps_its_bits(
    make_engine: Callable[[int], NativeEngine], adapted: Callable[[int], NativeEngine]
) -> None:
    untouched, engine = make_engine(2), adapted(2)
    ids = ids_of(engine.config, 13)
    np.testing.assert_array_equal(fed(untouched, ids), fed(engine, ids))


def test_scores_with_an_adapter_are_those_of_its_steps(
    adapted: Callable[[int], NativeEngine],
) -> None:
    engine = adapted(2)
    ids = ids_of(engine.config, 14)
    logits = fed(engine, ids, adapter="b")[:-1]
    np.testing.assert_array_equal(engine.score(ids, adapter="b").argmax, logits.argmax(1))
    assert (engine.score(ids).logprobs != engine.score(ids, adapter="b").logprobs).all()


def test_adapters_across_the_engine_s_own_chunks(
    make_model: Callable[..., Any], make_adapter: Callable[..., Any]
) -> None:
    config = ModelConfig.uniform(
        n_layers=1, d_model=16, n_heads=2, d_ff=32, vocab_size=40, max_positions=700
    )
    model = make_model(config)
    engine = NativeEngine(model, threads=2)
    engine.add_adapter("a", make_adapter(model))
    ids = ids_of(config, 11, 700)
    whole = fed(engine, ids, adapter="a")
    np.testing.assert_array_equal(whole, fed(engine, ids, [255, 256, 257, 600], "a"))
    names = ["a", None, "a"]
    k = [engine.open() for _ in names]
    batch = [
        SeqWork(c, ids[:250], Want.LAST_LOGITS, adapter=n) for c, n in zip(k, names, strict=True)
    ]
    first, _, last = engine.step(batch)
    np.testing.assert_array_equal(first.logits, whole[249])
    np.testing.assert_array_equal(last.logits, whole[249])


def test_what_workers_draw_together_is_the_oracle_s_draw() -> None:
    """By weight where nothing else is asked, else as ever; several rows of a batch at once."""
    engine = NativeEngine(open_model(EMBEDDED), threads=3)
    vocab = engine.config.vocab_size
    assert vocab > 1024  # several stretches
    ids = ids_of(engine.config, 3, 40)
    (first,) = engine.step([SeqWork(engine.open(), ids, Want.LAST_LOGITS)])
    assert first.logits is not None
    lesser = first.logits < np.sort(first.logits)[-3]  # without the three most probable
    unpadded = np.arange(vocab) < vocab - 7
    plain, hot = SamplingSettings(temperature=0.7), SamplingSettings(temperature=3.0, min_p=0.01)
    filtered = SamplingSettings(temperature=1.0, top_k=50, top_p=0.9)
    drawn = set()
    for seed in range(25):
        cases = [
            (dataclasses.replace(settings, seed=seed, request=i), mask)
            for i, (settings, mask) in enumerate(
                [(plain, None), (hot, unpadded), (filtered, None), (plain, lesser), (hot, None)]
            )
        ]
        want = Want.SAMPLE | Want.LAST_LOGITS
        works = [SeqWork(engine.open(), ids, want, *case) for case in cases]
        for out, work in zip(engine.step(works), works, strict=True):
            assert out.logits is not None
            expected = sample(
                out.logits, work.sampling, position=len(ids), seen=ids, mask=work.mask
            )
            assert out.token == expected
            drawn.add(out.token)
            engine.close(work.conversation)
    assert len(drawn) > 20
