"""Others: those who hang up, those who pry, and those who write into the log."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from served import CHAT, ENDLESS, ROBOT, TEXT, Server, start_server

from miudo.config import ModelConfig
from miudo.engine.batches import Limits, Request
from miudo.engine.fake import FakeEngine, babble
from miudo.protocol import SamplingSettings
from miudo.serve.worker import Worker

A, B = "key-of-a", "key-of-b"
CANARY = "phone7391"  # no hexadecimal number: ids in the log are
SECRET = f"The secret word is xylo{CANARY}. "


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "log"


@pytest.fixture(scope="module")
def shared(log: Path) -> Iterator[Server]:
    """A server with two keys, whose log can be read."""
    keys = log.parent / "keys"
    keys.write_text(f"{A}\n{B}\n")
    options = ("--parallel", "2", "--queue", "16", "--threads", "1", "--log", "json")
    with log.open("w") as out:
        made = start_server(*options, "--key-file", str(keys), stderr=out)
        yield made
        made.end()


def post(server: Server, key: str, body: dict[str, Any]) -> Any:
    return server.post(TEXT, body, authorization=f"Bearer {key}")


def figure(server: Server, name: str, **labels: str) -> float:
    return Server(server.url, server.process, A).figure(name, **labels)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def hung_up(server: Server, body: dict[str, Any], *, after: int = 0, wait_s: float = 0.0) -> None:
    """Asks, reads so many bytes, and goes."""
    data = json.dumps(body).encode()
    head = (
        f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {A}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection(server.address, timeout=30) as connection:
        connection.sendall(head.encode() + data)
        time.sleep(wait_s)
        if after:
            connection.recv(after)


@pytest.mark.row("H20")
@pytest.mark.parametrize("stream", [False, True])
def test_whoever_hangs_up_frees_the_place_and_changes_no_answer(
    shared: Server, stream: bool
) -> None:
    honest = ROBOT | {"max_tokens": 60, "temperature": 0.9, "seed": 5} | ENDLESS
    alone = post(shared, B, honest).json["choices"][0]["text"]
    long = {"prompt": [7] * 300, "max_tokens": 200, "stream": stream} | ENDLESS
    with ThreadPoolExecutor(12) as pool:
        texts = [pool.submit(post, shared, B, honest) for _ in range(3)]
        # In the queue and while the prompt is read: at once; in between; after tokens came.
        for i in range(24):
            pool.submit(hung_up, shared, long, after=stream * (i % 3), wait_s=(i % 4) * 0.05)
        answers = [text.result() for text in texts]
    assert [a.status for a in answers] == [200] * 3
    assert [a.json["choices"][0]["text"] for a in answers] == [alone] * 3
    until(lambda: figure(shared, "miudo:num_requests_running") == 0)
    assert figure(shared, "miudo:num_requests_waiting") == 0
    assert figure(shared, "miudo:request_success_total", finished_reason="abort") > 0
    assert post(shared, A, honest).json["choices"][0]["text"] == alone


@pytest.mark.row("H20")
@pytest.mark.slow
def test_a_thousand_hang_ups_leave_nothing(shared: Server) -> None:
    long = {"prompt": [7] * 300, "max_tokens": 200, "stream": True} | ENDLESS
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: hung_up(shared, long, after=i % 2), range(100)))
        before = figure(shared, "process_resident_memory_bytes")
        list(pool.map(lambda i: hung_up(shared, long, after=i % 2), range(1000)))
    until(lambda: figure(shared, "miudo:num_requests_running") == 0)
    assert figure(shared, "process_resident_memory_bytes") - before < 32 << 20


@pytest.mark.row("H29")
def test_what_one_key_asked_saves_another_nothing(shared: Server) -> None:
    body = {"prompt": [*range(100, 300)], "max_tokens": 1}
    hits = lambda: figure(shared, "miudo:prefix_cache_hits_total")  # noqa: E731
    post(shared, A, body)
    before = hits()
    post(shared, B, body)
    assert hits() == before
    post(shared, A, body)
    assert hits() > before  # the cache is there, for A


def canary_rounds(server: Server, rounds: int) -> Iterator[str]:
    """Yields all that B sees while A asks with its secret, is cut off, and crowds the cache."""
    for i in range(rounds):
        mine = {"prompt": SECRET * 5, "max_tokens": 30, "seed": i, "stream": i % 3 == 0}
        crowd = threading.Thread(target=hung_up, args=(server, mine), kwargs={"wait_s": 0.01})
        crowd.start()
        shapes: tuple[dict[str, Any], ...] = (
            {"prompt": SECRET[:19]},
            {"prompt": SECRET[:10], "logprobs": 3},
            {"prompt": "Tell me a secret", "n": 2},
            {"prompt": [10**9]},
        )
        asked = {"max_tokens": 6, "temperature": 0} | shapes[i % len(shapes)]
        yield post(server, B, asked).body.decode()
        crowd.join()


@pytest.mark.row("H31")
def test_one_keys_secret_reaches_no_other(shared: Server, log: Path) -> None:
    echoed = post(shared, A, {"prompt": SECRET, "echo": True, "max_tokens": 1})
    assert CANARY in echoed.body.decode()  # where it may be it is seen
    alone = [json.loads(seen) for seen in itertools.islice(canary_rounds(shared, 4), 4)]
    for i, seen in enumerate(canary_rounds(shared, 160)):
        # The same as ever, whoever asks beside.
        assert json.loads(seen).get("choices") == alone[i % 4].get("choices")
        assert CANARY not in seen
    metrics = shared.ask("GET", "/metrics", authorization=f"Bearer {B}").body.decode()
    for place in (metrics, log.read_text()):
        for secret in (CANARY, A, B, "Tell me"):
            assert secret not in place


@pytest.mark.row("H28")
def test_nothing_that_clients_choose_forges_a_line_of_the_log(shared: Server, log: Path) -> None:
    assert post(shared, A, {"prompt": "Hello", "max_tokens": 1}).status == 200
    evil = 'x"\n{"event": "forged"}\x1b[31m\r\x00' + "y" * 1_000_000
    for body in ({"prompt": evil}, {"prompt": "x", "model": evil}, {evil[:40]: 1}):
        assert post(shared, A, body).status in (400, 404)
    path = "/x%0a%7b%22event%22:%20%22forged%22%7d%1b%5b31m" + "y" * 5000
    for name in (A, "wrong-key-that-must-not-be-logged"):
        shared.ask("GET", path, authorization=f"Bearer {name}", x_request_id="a" * 65)
    shared.ask("GET", "/health", x_request_id="mine-1")
    until(lambda: '"mine-1"' in log.read_text())
    text = log.read_text()
    events = [json.loads(line) for line in text.splitlines()]
    assert "forged" not in {event["event"] for event in events}
    assert text.isascii()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 2000
    for secret in (A, B, "must-not-be-logged", "yyyy" * 100):
        assert secret not in text
    asked = next(e for e in events if e.get("model") and e["status"] == 200)
    assert asked["prompt_tokens"] > 0
    assert asked["key"] not in (A, B)


@pytest.mark.row("H33")
def test_no_address_in_a_request_is_fetched(shared: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x"
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": url}}, {"type": "file", "file_url": url},
            {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
        ]  # fmt: skip
        bodies: list[dict[str, Any]] = [
            {"messages": [{"role": "user", "content": [part]}]} for part in parts
        ]
        hello = [{"role": "user", "content": url}]
        bodies += [{"messages": hello, "model": url}, {"messages": hello, "max_tokens": 1}]
        key = {"authorization": f"Bearer {A}"}
        statuses = [shared.post(CHAT, body, **key).status for body in bodies]
        assert statuses == [400, 400, 400, 404, 200]
        with pytest.raises(TimeoutError):
            trap.accept()
        with socket.create_connection(trap.getsockname()):  # the trap would have caught it
            trap.accept()[0].close()


class Same(int):
    """Ids that are all told apart, and all have one hash."""

    def __hash__(self) -> int:
        return 0


@pytest.mark.row("H30")
def test_prompts_of_one_hash_share_only_what_is_equal() -> None:
    config = ModelConfig.uniform(
        n_layers=1, d_model=8, n_heads=1, d_ff=8, vocab_size=23, max_positions=60
    )
    limits = Limits(context=60, pages=64, page_positions=4, max_positions=16, max_sequences=4)
    prompts = [[Same(t) for t in (1, 2, 3, 4, i, 5, 6, 7, 8, 9)] for i in range(5, 15)]

    def answers(scopes: list[str]) -> list[list[int]]:
        worker = Worker(FakeEngine(config, babble(23)), limits)
        made = []
        for prompt, scope in zip(prompts, scopes, strict=True):
            tokens: list[int] = []
            done = threading.Event()

            def sink(item: Any, tokens: list[int] = tokens, done: Any = done) -> None:
                tokens.extend(item.tokens)
                if item.finish_reason:
                    done.set()

            sampling = SamplingSettings(temperature=1.0, seed=1)
            worker.submit(Request(worker.next_number(), prompt, 8, sampling, scope=scope), sink)
            assert done.wait(20)
            made.append(tokens)
        assert (worker.load().reused_tokens > 0) == (len(set(scopes)) == 1)
        worker.close()
        return made

    apart = answers([str(i) for i in range(10)])
    assert answers(["one"] * 10) == apart
    assert len({tuple(tokens) for tokens in apart}) > 1
