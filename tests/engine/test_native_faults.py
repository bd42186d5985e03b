"""What happens to an engine from outside: forks, signals, other threads."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from miudo.config import ModelConfig
from miudo.engine.native import NativeEngine
from miudo.errors import RequestError
from miudo.protocol import SeqWork, Want

PROGRAM = Path(__file__).with_name("one_engine.py")
PATIENCE = 120.0  # seconds: of a hang, and not of a busy machine


def program(*arguments: str) -> subprocess.Popen[str]:
    """Starts one_engine.py, which works or fails on its own: a hang must not be ours."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def said(running: subprocess.Popen[str]) -> list[str]:
    try:
        out, error = running.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        running.kill()
        pytest.fail(f"hangs: {running.communicate()}")
    assert running.returncode == 0, error[-2000:]
    return out.splitlines()


@pytest.mark.row("N6")
@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_forked_child_is_refused_and_makes_its_own(threads: str) -> None:
    assert said(program("fork", threads)) == ["refused", "own engine: equal", "parent: equal"]


@pytest.mark.row("N7")
def test_ctrl_c_in_a_long_prompt() -> None:
    running = program("prompt")
    assert running.stdout is not None
    assert running.stdout.readline() == "begins\n"
    time.sleep(0.1)  # on a busy machine a longer sleep outlasts the prompt
    running.send_signal(signal.SIGINT)
    sent = time.monotonic()
    came, length, again = said(running)
    # On a quiet machine 50 to 100 ms; a busy one runs others first.
    assert float(came) - sent < 10
    assert (length, again) == ("0", "2")


def orders(one: Sequence[int], other: Sequence[int]) -> list[list[int]]:
    """Every way to take turns."""
    n = len(one) + len(other)
    found = []
    for places in itertools.combinations(range(n), len(one)):
        a, b = iter(one), iter(other)
        found.append([next(a) if i in places else next(b) for i in range(n)])
    return found


@pytest.mark.row("N6")
def test_two_threads_on_one_conversation_take_turns(llama: Any) -> None:
    engine = NativeEngine(llama, threads=2)
    mine, yours = [3, 4, 5], [60, 70, 80]

    def last(ids: Sequence[int]) -> list[bytes]:
        k = engine.open()
        outs = [engine.step([SeqWork(k, [i], Want.LAST_LOGITS)])[0] for i in ids]
        return [np.asarray(out.logits).tobytes() for out in outs]

    allowed = {frozenset(zip(order, last(order), strict=True)) for order in orders(mine, yours)}
    for _ in range(4):
        k = engine.open()
        start = threading.Barrier(2)

        def feed(
            ids: list[int], k: int = k, start: threading.Barrier = start
        ) -> list[tuple[int, bytes]]:
            start.wait(PATIENCE)
            outs = [engine.step([SeqWork(k, [i], Want.LAST_LOGITS)])[0] for i in ids]
            return [(i, np.asarray(o.logits).tobytes()) for i, o in zip(ids, outs, strict=True)]

        with ThreadPoolExecutor(2) as pool:
            a, b = pool.map(feed, (mine, yours))
        assert frozenset(a + b) in allowed
        assert engine.length(k) == 6
        engine.close(k)


@pytest.mark.row("N6")
def test_closing_what_another_thread_is_using(make_model: Callable[..., Any]) -> None:
    """The step ends first; the next one finds the conversation gone."""
    config = ModelConfig.uniform(
        n_layers=2, d_model=64, n_heads=4, d_ff=128, vocab_size=64, max_positions=4096
    )
    engine = NativeEngine(make_model(config), threads=2)
    ids = np.arange(2000) % 64

    def steps(k: int) -> str:
        try:
            for _ in range(2):
                engine.step([SeqWork(k, ids, Want.NOTHING)])
        except RequestError as gone:
            return str(gone)
        return "done"

    with ThreadPoolExecutor(1) as pool:
        for wait in (0.0, 0.001, 0.02):
            k = engine.open()
            running = pool.submit(steps, k)
            time.sleep(wait)
            engine.close(k)
            assert running.result(PATIENCE) in ("done", f"conversation {k} is not open")
    assert engine.cache_bytes_used == 0


@pytest.mark.row("N6")
def test_looking_at_an_engine_while_a_thread_steps(make_model: Callable[..., Any]) -> None:
    """The step asks for the interpreter's lock between layers, which a look must not hold."""
    config = ModelConfig.uniform(
        n_layers=24, d_model=64, n_heads=2, d_ff=64, vocab_size=50, max_positions=20_000
    )
    engine = NativeEngine(make_model(config), threads=1)
    k = engine.open()
    step = threading.Thread(
        target=lambda: engine.step([SeqWork(k, np.arange(2500) % 50, Want.NOTHING)]), daemon=True
    )
    step.start()
    seen = set()
    while step.is_alive():
        seen.add(engine.cache_bytes_used)
    step.join(PATIENCE)
    assert engine.length(k) == 2500
    assert engine.cache_bytes_used > 0
    assert seen <= {0, engine.cache_bytes_used}  # pages are taken for a whole step, or none yet


@pytest.mark.row("N6")
def test_a_signal_handler_that_calls_the_engine_is_refused(make_model: Callable[..., Any]) -> None:
    config = ModelConfig.uniform(
        n_layers=1, d_model=32, n_heads=2, d_ff=32, vocab_size=50, max_positions=40_000
    )
    engine = NativeEngine(make_model(config), threads=1)
    k = engine.open()
    caught: list[str] = []

    def handler(number: int, frame: object) -> None:
        try:
            engine.length(k)
        except RequestError as refused:
            caught.append(str(refused))

    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.15, 0.15)
    try:
        engine.step([SeqWork(k, np.arange(20_000) % 50, Want.NOTHING)])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert engine.length(k) == 20_000
    assert all("must not call it" in text for text in caught)


@pytest.mark.row("N8")
@pytest.mark.parametrize("threads", [1, 2, 5, 64])
def test_more_threads_than_cores(llama_q8: Any, threads: int) -> None:
    ids = np.arange(9) * 7 % 131
    right = NativeEngine(llama_q8, threads=1).score(ids).logprobs
    engine = NativeEngine(llama_q8, threads=threads)
    assert engine.threads == threads
    np.testing.assert_array_equal(engine.score(ids).logprobs, right)


@pytest.mark.row("N8")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system pins no process")
def test_on_one_core_the_default_is_one_thread(llama: Any) -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert NativeEngine(llama).threads == 1
        engine = NativeEngine(llama, threads=2)  # spinning must not starve the other
        assert np.isfinite(engine.score([1, 2, 3]).logprobs).all()
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.row("N9")
def test_engines_come_and_go(llama: Any) -> None:
    process = psutil.Process()

    def one() -> npt.NDArray[np.float32]:
        return NativeEngine(llama, threads=3).score([1, 2, 3]).logprobs

    for _ in range(10):
        one()
    gc.collect()
    before, threads = process.memory_info().rss, process.num_threads()
    for _ in range(60):
        one()
    gc.collect()
    # 60 leaked engines would be 18 MB and 120 threads.
    assert process.memory_info().rss - before < 6 << 20
    assert process.num_threads() <= threads
