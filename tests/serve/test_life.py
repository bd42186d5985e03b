"""From start to end: loading, signals, draining, restarts, and an engine that dies."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from served import ENDLESS, ROBOT, TEXT, Server, start_server

LONG = ROBOT | ENDLESS | {"max_tokens": 200}

SLOW_STEPS = """
import time
from miudo.engine.native import NativeEngine
step = NativeEngine.step
def slow(self, batch):
    time.sleep(0.01 if batch else 0)
    return step(self, batch)
NativeEngine.step = slow
"""
DYING = """
from miudo.engine.native import NativeEngine
step = NativeEngine.step
def dying(self, batch):
    if any(700 in work.ids for work in batch):
        raise ZeroDivisionError("a prompt's secret")
    return step(self, batch)
NativeEngine.step = dying
"""
SLOW_LOADING = """
import time
from miudo.serve import hosted
load = hosted.load_model
def slow(*given, **named):
    time.sleep(4)
    return load(*given, **named)
hosted.load_model = slow
"""
JUMPING = """
import itertools, time
jumps, real = itertools.cycle((86_400.0, -86_400.0, 0.0)), time.time
time.time = lambda: real() + next(jumps)
"""


@contextlib.contextmanager
def served(*arguments: str, **how: Any) -> Iterator[Server]:
    server = start_server("--threads", "1", *arguments, **how)
    try:
        yield server
    finally:
        server.end()


class Asking(threading.Thread):
    """A request that goes on beside the test."""

    def __init__(self, server: Server, body: dict[str, Any]) -> None:
        super().__init__()
        self._server, self._body = server, body
        self.reply: Any = None
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.reply = self._server.post(TEXT, self._body)

    def wait(self) -> Any:
        self.join(60)
        assert not self.is_alive(), "it hangs"
        return self.reply


def until(server: Server, **wanted: float) -> None:
    """Waits until metrics of the model have these values."""
    deadline = time.monotonic() + 30
    while any(server.figure(f"miudo:{name}") != value for name, value in wanted.items()):
        assert time.monotonic() < deadline, wanted
        time.sleep(0.02)


@pytest.fixture
def hangups_heard() -> Iterator[None]:
    """Under nohup, which tests may run under, programs are begun with hangups ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.row("H23")
@pytest.mark.usefixtures("hangups_heard")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_idle_server_ends_at_once_and_well(how: signal.Signals) -> None:
    with served() as server:
        begun = time.monotonic()
        assert server.stop(how) == 0
        assert time.monotonic() - begun < 9.0  # it may drain for 10


@pytest.mark.row("H23", "H26")
def test_what_runs_is_drained_and_new_requests_are_told() -> None:
    with served("--drain", "20s", before=SLOW_STEPS) as server:
        running = Asking(server, LONG)
        until(server, num_requests_running=1)
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while server.ask("GET", "/ready").status != 503:
            assert time.monotonic() < deadline
        assert server.ask("GET", "/ready").json == {"status": "draining"}
        assert server.ask("GET", "/health").status == 200  # it lives, and is not ready
        told = server.post(TEXT, ROBOT)
        assert told.status == 503
        assert told.headers["retry-after"]
        assert running.wait().status == 200
        assert running.reply.json["usage"]["completion_tokens"] == 200
        assert server.process.wait(15) == 0


@pytest.mark.row("H23")
def test_what_does_not_end_in_time_is_told_so() -> None:
    with served("--drain", "0.5s", before=SLOW_STEPS) as server:
        running = Asking(server, LONG | {"max_tokens": 480})
        until(server, num_requests_running=1)
        server.process.send_signal(signal.SIGTERM)
        assert running.wait().status == 503
        assert server.process.wait(15) == 0


@pytest.mark.row("H23")
def test_a_second_signal_ends_it_now() -> None:
    with served("--drain", "60s", before=SLOW_STEPS) as server:
        running = Asking(server, LONG | {"max_tokens": 480})
        until(server, num_requests_running=1)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.stop(signal.SIGTERM) == 130
        assert running.wait() is None


@pytest.mark.row("H24")
def test_after_sigkill_it_starts_at_once_on_the_same_port() -> None:
    with served() as server:
        port = str(server.address[1])
        with socket.create_connection(server.address):  # one that the system remembers
            assert server.stop(signal.SIGKILL) == -signal.SIGKILL
            with served("--port", port) as again:
                assert again.address == server.address
                assert again.post(TEXT, ROBOT).status == 200


@pytest.mark.row("H25", "H35")
def test_an_engine_that_dies_tells_everybody_and_ends_the_process(tmp_path: Any) -> None:
    log = tmp_path / "log"
    with log.open("w") as out, served("--log", "json", before=DYING, stderr=out) as server:
        running = [Asking(server, LONG | {"max_tokens": 400, "seed": i}) for i in range(3)]
        until(server, num_requests_running=3)
        deadly = server.post(TEXT, {"prompt": [700], "max_tokens": 2}, x_request_id="the-last")
        assert deadly.status == 500
        assert deadly.headers["x-request-id"] == "the-last"
        assert b"Zero" not in deadly.body
        assert b"secret" not in deadly.body
        for asking in running:
            assert asking.wait().status == 500
        with contextlib.suppress(OSError):  # it may be over already
            assert server.ask("GET", "/health").status == 503
        assert server.process.wait(20) == 1
    text = log.read_text()
    assert '"id": "the-last"' in text
    assert "secret" not in text


@pytest.mark.row("H25")
def test_a_process_that_aborts_leaves_nobody_waiting() -> None:
    raising = next(line.strip() for line in DYING.splitlines() if "raise" in line)
    aborting = DYING.replace(raising, "os.abort()")
    with served(before=f"import os{aborting}") as server:
        running = Asking(server, LONG | {"max_tokens": 400})
        until(server, num_requests_running=1)
        deadly = Asking(server, {"prompt": [700], "max_tokens": 2})
        assert deadly.wait() is None
        assert running.wait() is None
        assert server.process.wait(20) == -signal.SIGABRT


@pytest.mark.row("H25")
def test_an_engine_that_refuses_one_request_goes_on() -> None:
    refusing = DYING.replace("ZeroDivisionError", "RequestError")
    start = "from miudo.errors import RequestError\n"
    with served(before=start + refusing) as server:
        assert server.post(TEXT, {"prompt": [700], "max_tokens": 2}).status == 400
        assert server.post(TEXT, ROBOT).status == 200


@pytest.mark.row("H26")
def test_while_it_loads_it_lives_and_is_not_ready() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    seen: list[tuple[int, int, int]] = []
    probe = Server(f"http://127.0.0.1:{port}", None)  # type: ignore[arg-type]

    def look() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (seen and seen[-1][1] == 200):
            with contextlib.suppress(OSError):
                health, ready = (probe.ask("GET", path).status for path in ("/health", "/ready"))
                seen.append((health, ready, probe.post(TEXT, ROBOT).status))
            time.sleep(0.05)

    looking = threading.Thread(target=look)
    looking.start()
    with served("--port", str(port), before=SLOW_LOADING):
        looking.join(60)
    assert seen[0] == (200, 503, 503)
    assert seen[-1] == (200, 200, 200)
    assert {health for health, _, _ in seen} == {200}


@pytest.mark.row("H26")
def test_it_answers_for_its_health_while_it_computes() -> None:
    with served("--parallel", "8") as server:
        running = [Asking(server, LONG | {"seed": i}) for i in range(8)]
        until(server, num_requests_running=8)
        slowest = 0.0
        for _ in range(20):
            begun = time.monotonic()
            assert server.ask("GET", "/health").status == 200
            slowest = max(slowest, time.monotonic() - begun)
        assert slowest < 2.0
        assert {asking.wait().status for asking in running} == {200}


@pytest.mark.row("H34")
def test_a_clock_that_jumps_moves_no_deadline() -> None:
    with served(before=JUMPING + SLOW_STEPS) as server:
        fine = server.post(TEXT, ROBOT, x_request_timeout="60")
        assert fine.status == 200
        late = server.post(TEXT, LONG | {"max_tokens": 480}, x_request_timeout="0.5")
        assert late.status == 504
        assert server.stop() == 0


def test_a_model_that_cannot_be_opened_ends_the_start(tmp_path: Any) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF")
    with pytest.raises(AssertionError, match="did not start: 1"):
        start_server(str(bad))
