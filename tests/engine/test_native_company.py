"""The same bits among many: wide batches, cancelled neighbours, the last position of a context."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from miudo.adapter import Adapter
from miudo.engine.native import NativeEngine
from miudo.errors import RequestError
from miudo.protocol import SamplingSettings, SeqWork, StepOut, Want

Ids = npt.NDArray[np.int64]
PATHS = ["portable", "avx2", "best"]
CONTEXT, VOCAB = 160, 131  # of llama_q8


def ids_of(seed: int, length: int) -> Ids:
    return np.random.default_rng(seed).integers(0, VOCAB, length)


def alone(engine: NativeEngine, ids: Ids, adapter: str | None = None) -> npt.NDArray[np.float32]:
    k = engine.open()
    (out,) = engine.step([SeqWork(k, ids, Want.ALL_LOGITS, adapter=adapter)])
    engine.close(k)
    assert out.logits is not None
    return out.logits


@pytest.fixture(params=PATHS)
def engines(
    request: pytest.FixtureRequest, llama_q8: Any, force_isa: Callable[[str | None], None]
) -> Callable[[int], NativeEngine]:
    force_isa(None if request.param == "best" else request.param)
    return lambda threads: NativeEngine(llama_q8, threads=threads)


def test_one_to_four_threads(engines: Callable[[int], NativeEngine]) -> None:
    ids = ids_of(1, 70)
    one, *more = (engines(n) for n in (1, 2, 3, 4))
    whole = alone(one, ids)
    for engine in more:
        np.testing.assert_array_equal(whole, alone(engine, ids))
        k = engine.open()
        for at, i in enumerate(ids[:40]):
            (out,) = engine.step([SeqWork(k, [i], Want.LAST_LOGITS)])
            np.testing.assert_array_equal(out.logits, whole[at])


@pytest.mark.parametrize("n", [2, 3, 7, 8, 9, 16, 31, 32])
def test_batches_of_up_to_32(engines: Callable[[int], NativeEngine], n: int) -> None:
    """Decoding side by side at lengths of their own; looked at: the first, a middle, the last."""
    engine = engines(2)
    texts = [ids_of(100 + i, 3 + 5 * i % 40 + 6) for i in range(n)]
    k = [engine.open() for _ in range(n)]
    outs: list[StepOut] = []
    engine.step([SeqWork(c, t[:-3], Want.NOTHING) for c, t in zip(k, texts, strict=True)])
    steps = []
    for left in (3, 2, 1):
        batch = [SeqWork(c, [t[-left]], Want.LAST_LOGITS) for c, t in zip(k, texts, strict=True)]
        outs = engine.step(batch)
        steps.append([out.logits for out in outs])
    for place in {0, n // 2, n - 1}:
        right = alone(engine, texts[place])[-3:]
        np.testing.assert_array_equal(np.stack([step[place] for step in steps]), right)


@pytest.mark.slow
@pytest.mark.row("E1")
def test_a_thousand_times_in_random_company(engines: Callable[[int], NativeEngine]) -> None:
    _random_company(engines(2), 1000)


@pytest.mark.row("E1")
def test_in_random_company(engines: Callable[[int], NativeEngine]) -> None:
    _random_company(engines(2), 40)


def _random_company(engine: NativeEngine, times: int) -> None:
    rng = np.random.default_rng(5)
    prompt, settings = ids_of(2, 21), SamplingSettings(temperature=1.0, seed=9, request=4)
    seen = set()
    for _ in range(times):
        n = int(rng.integers(1, 7))
        place, cut = int(rng.integers(0, n)), int(rng.integers(1, 21))
        k = [engine.open() for _ in range(n)]
        batch = [SeqWork(c, ids_of(int(rng.integers(1 << 30)), 9), Want.NOTHING) for c in k]
        batch[place] = SeqWork(k[place], prompt[:cut], Want.NOTHING)
        engine.step(batch)
        batch = [SeqWork(c, [7], sampling=settings) for c in k]
        want = Want.SAMPLE | Want.LAST_LOGITS
        batch[place] = SeqWork(k[place], prompt[cut:], want, sampling=settings)
        out = engine.step(batch)[place]
        assert out.logits is not None
        seen.add((out.token, out.logprob, out.logits.tobytes()))
        for c in k:
            engine.close(c)
    assert len(seen) == 1
    assert engine.cache_bytes_used == 0


@pytest.mark.row("E3")
def test_a_neighbour_s_cancellation(engines: Callable[[int], NativeEngine]) -> None:
    """It fails, is closed or truncated between our steps; we go on as if it had never been."""
    engine = engines(2)
    ids, nothing = ids_of(3, 60), np.zeros(VOCAB, np.bool_)
    right = alone(engine, ids)
    mine, other = engine.open(), engine.open()
    engine.step([SeqWork(mine, ids[:30], Want.NOTHING), SeqWork(other, ids_of(4, 50))])
    for at in range(30, 60):
        if at % 3 == 0:  # a batch that fails as a whole: nobody has moved
            with pytest.raises(RequestError, match="no id can be drawn"):
                engine.step([SeqWork(mine, [1]), SeqWork(other, [2], mask=nothing)])
        elif at % 3 == 1:
            engine.truncate(other, engine.length(other) // 2)
        else:
            engine.close(other)
            other = engine.open()
        batch = [SeqWork(mine, [ids[at]], Want.LAST_LOGITS), SeqWork(other, ids_of(at, 5))]
        np.testing.assert_array_equal(engine.step(batch)[0].logits, right[at])


@pytest.mark.row("E3")
def test_pages_that_others_have_used(llama_q8: Any) -> None:
    """A budget of a few pages, given from one to the next with what was written in them."""
    page = NativeEngine(llama_q8, threads=1)
    k = page.open()
    page.step([SeqWork(k, [1], Want.NOTHING)])
    small = NativeEngine(llama_q8, threads=1, cache_bytes=3 * page.cache_bytes_used)
    for seed in range(6):
        ids = ids_of(seed, 40 + 9 * seed)
        np.testing.assert_array_equal(alone(small, ids), alone(page, ids))


@pytest.mark.row("E4")
def test_a_prompt_s_logprobs_are_those_of_decoding(engines: Callable[[int], NativeEngine]) -> None:
    """Drawing what the text says next, by a mask that leaves nothing else."""
    engine = engines(2)
    ids = ids_of(6, 50)
    scored = engine.score(ids).logprobs
    k = engine.open()
    for at in range(49):
        only = np.zeros(VOCAB, np.bool_)
        only[ids[at + 1]] = True
        (out,) = engine.step([SeqWork(k, [ids[at]], mask=only)])
        assert out.token == ids[at + 1]
        assert np.float32(out.logprob or 0.0) == scored[at]


@pytest.mark.row("E6")
def test_the_last_positions_of_the_context(engines: Callable[[int], NativeEngine]) -> None:
    engine = engines(2)
    ids = ids_of(7, CONTEXT)
    whole = alone(engine, ids)
    for length in (1, 2, 31, 32, 33, CONTEXT - 2, CONTEXT - 1, CONTEXT):
        np.testing.assert_array_equal(alone(engine, ids[:length]), whole[:length])
    k = engine.open()
    engine.step([SeqWork(k, ids[: CONTEXT - 2], Want.NOTHING)])
    used = engine.cache_bytes_used
    with pytest.raises(RequestError, match="161 positions, the model has 160"):
        engine.step([SeqWork(k, [1, 2, 3], Want.ALL_LOGITS)])
    assert (engine.length(k), engine.cache_bytes_used) == (CONTEXT - 2, used)
    for at in (CONTEXT - 2, CONTEXT - 1):
        (out,) = engine.step([SeqWork(k, [ids[at]], Want.LAST_LOGITS)])
        np.testing.assert_array_equal(out.logits, whole[at])
    with pytest.raises(RequestError, match="161 positions"):
        engine.step([SeqWork(k, [1])])
    with pytest.raises(RequestError, match="161 positions"):
        engine.score(np.zeros(CONTEXT + 1, np.int32))


def test_adapters_side_by_side_on_every_path(
    engines: Callable[[int], NativeEngine], llama_q8: Any, make_adapter: Callable[..., Adapter]
) -> None:
    engine = engines(3)
    for name in ("a", "b"):
        engine.add_adapter(name, make_adapter(llama_q8, seed=ord(name)))
    names = ["a", None, "b", "a", "b", None, "a"]
    texts = [ids_of(20 + i, 30 + i) for i in range(len(names))]
    rights = [alone(engine, t, n) for t, n in zip(texts, names, strict=True)]
    k = [engine.open() for _ in names]
    for start, end in ((0, 20), (20, 21), (21, 30)):
        batch = [
            SeqWork(c, t[start:end], Want.ALL_LOGITS, adapter=n)
            for c, t, n in zip(k, texts, names, strict=True)
        ]
        for out, right in zip(engine.step(batch), rights, strict=True):
            np.testing.assert_array_equal(out.logits, right[start:end])


def test_a_step_that_is_stopped_leaves_others_their_bits(
    engines: Callable[[int], NativeEngine],
) -> None:
    """Three threads of Python, of which one keeps failing."""
    engine = engines(2)
    texts = [ids_of(30 + i, 40) for i in range(2)]
    rights = [alone(engine, t) for t in texts]
    stop = threading.Event()

    def fail() -> None:
        while not stop.is_set():
            k = engine.open()
            with pytest.raises(RequestError):
                engine.step([SeqWork(k, [1, 2], mask=np.zeros(VOCAB, np.bool_))])
            engine.close(k)

    failing = threading.Thread(target=fail)
    failing.start()
    try:
        for text, right in zip(texts, rights, strict=True):
            k = engine.open()
            for at, i in enumerate(text):
                (out,) = engine.step([SeqWork(k, [i], Want.LAST_LOGITS)])
                np.testing.assert_array_equal(out.logits, right[at])
    finally:
        stop.set()
        failing.join()
