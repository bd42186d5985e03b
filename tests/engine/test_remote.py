"""The chat client against a server that speaks the protocol well, badly, slowly or not at all."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from miudo.engine.remote import KEY_VARIABLE, RemoteGenerator, RemoteSettings, read_key
from miudo.errors import DataError, MissingError, RequestError, UsageError
from miudo.protocol import Generator, Message, TextEvent

ASKED = [Message("system", "Be brief."), Message("user", "Olá?")]
Behaviour = Callable[[BaseHTTPRequestHandler], None]


def chunk(text: str | None = None, reason: str | None = None) -> bytes:
    delta = {} if text is None else {"content": text}
    values = {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    return b"data: " + json.dumps(values).encode() + b"\n\n"


USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "other": "x"}}
GOOD = (
    b": ping\n\n" + chunk("") + chunk("Oi") + chunk(", tudo bem") + chunk("?") + chunk(None, "stop")
    + b"data: " + json.dumps(USAGE).encode() + b"\n\ndata: [DONE]\n\n"
)  # fmt: skip


def send(
    body: bytes, status: int = 200, kind: str = "text/event-stream", **headers: str
) -> Behaviour:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def stall(seconds: float, first: bytes = b"") -> Behaviour:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(first)
        handler.wfile.flush()
        time.sleep(seconds)

    return answer


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


class Server(ThreadingHTTPServer):
    """Does the next of `script` at each request, its last one for ever after."""

    daemon_threads = True

    def __init__(self, *script: Behaviour) -> None:
        self.script, self.requests = list(script), list[dict[str, Any]]()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is what some tests want."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        seen = {"path": self.path, "body": json.loads(body), "headers": {}}
        seen["headers"] = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(seen)
        script = self.server.script
        (script.pop(0) if len(script) > 1 else script[0])(self)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def start(*script: Behaviour) -> Server:
        server = Server(*script)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def ask(server: Server, waits: list[float] | None = None, **settings: Any) -> list[TextEvent]:
    sleep = (lambda _: None) if waits is None else waits.append
    made = RemoteGenerator(RemoteSettings(server.url, "big", **settings), key="k3y", sleep=sleep)
    try:
        return list(made.generate(ASKED, max_tokens=5))
    finally:
        made.close()


def test_an_answer_comes_in_pieces_with_its_end_and_counts(serve: Callable[..., Server]) -> None:
    server = serve(send(GOOD))
    events = ask(server, temperature=0.3, seed=4)
    assert [event.text for event in events] == ["Oi", ", tudo bem", "?", ""]
    assert events[-1].finish_reason == "stop"
    assert events[-1].usage == {"prompt_tokens": 9, "completion_tokens": 3}
    (seen,) = server.requests
    assert seen["path"] == "/v1/chat/completions"
    assert seen["headers"]["authorization"] == "Bearer k3y"
    assert seen["body"] == {
        "model": "big",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Olá?"},
        ],
        "max_tokens": 5,
        "temperature": 0.3,
        "top_p": 1.0,
        "seed": 4,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_it_is_a_generator() -> None:
    assert isinstance(RemoteGenerator(RemoteSettings("http://127.0.0.1:9/v1", "m")), Generator)


def test_pieces_arrive_before_the_answer_ends(serve: Callable[..., Server]) -> None:
    server = serve(stall(30, chunk("first")))
    made = RemoteGenerator(RemoteSettings(server.url, "big", timeout_s=20))
    events = made.generate(ASKED, max_tokens=5)
    begun = time.monotonic()
    assert next(events).text == "first"
    assert time.monotonic() - begun < 10
    events.close()  # type: ignore[attr-defined]
    made.close()


def test_a_server_that_does_not_stream_will_do(serve: Callable[..., Server]) -> None:
    message = {"role": "assistant", "content": "whole"}
    values = {"choices": [{"message": message, "finish_reason": "length"}]}
    server = serve(send(json.dumps(values).encode(), kind="application/json; charset=utf-8"))
    assert [(e.text, e.finish_reason) for e in ask(server)] == [("whole", None), ("", "length")]


def test_an_end_without_done_is_an_end(serve: Callable[..., Server]) -> None:
    server = serve(send(chunk("a") + chunk(None, "length")))
    assert [(e.text, e.finish_reason) for e in ask(server)] == [("a", None), ("", "length")]


def test_a_busy_server_is_asked_again_later_and_later(serve: Callable[..., Server]) -> None:
    server = serve(send(b"", 500), send(b"", 503), hang_up, send(GOOD))
    waits: list[float] = []
    assert "".join(e.text for e in ask(server, waits, wait_s=0.5)) == "Oi, tudo bem?"
    assert waits == [0.5, 1.0, 2.0]


def test_what_a_429_asks_for_is_waited_within_limits(serve: Callable[..., Server]) -> None:
    wait = send(b"", 429, Retry_After="7")
    date = send(b"", 429, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT")
    server = serve(wait, date, send(b"", 429, Retry_After="9999"), send(GOOD))
    waits: list[float] = []
    ask(server, waits, wait_s=1.0, most_wait_s=30.0)
    assert waits == [7.0, 2.0, 30.0]


@pytest.mark.parametrize("status", [429, 500, 502])
def test_one_that_stays_busy_is_given_up(serve: Callable[..., Server], status: int) -> None:
    server = serve(send(b'{"error": {"message": "no more today"}}', status))
    with pytest.raises(MissingError, match=rf"127.*answers {status} \(no more today\), 3 times"):
        ask(server, attempts=3)
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_repeated(serve: Callable[..., Server], status: int) -> None:
    server = serve(send(b'{"error": {"message": "not you"}}', status))
    with pytest.raises(RequestError, match=rf"answers {status} \(not you\)") as caught:
        ask(server)
    assert len(server.requests) == 1
    assert "k3y" not in str(caught.value)


def test_a_redirection_is_not_followed_with_the_key(serve: Callable[..., Server]) -> None:
    elsewhere = serve(send(GOOD))
    server = serve(send(b"", 307, Location=f"{elsewhere.url}/chat/completions"))
    with pytest.raises(RequestError, match="answers 307, and names http"):
        ask(server)
    assert not elsewhere.requests


def test_a_stream_that_breaks_off_is_said_and_not_repeated(serve: Callable[..., Server]) -> None:
    server = serve(send(chunk("half an")))
    seen: list[str] = []
    made = RemoteGenerator(RemoteSettings(server.url, "big"), sleep=lambda _: None)
    with pytest.raises(MissingError, match="breaks off"):
        seen.extend(event.text for event in made.generate(ASKED, max_tokens=5))
    made.close()
    assert len(server.requests) == 1  # pieces were given out: they cannot be taken back


def test_an_empty_stream_is_asked_for_again(serve: Callable[..., Server]) -> None:
    server = serve(send(b""), send(GOOD))
    assert "".join(e.text for e in ask(server)) == "Oi, tudo bem?"


def test_a_slow_server_is_left(serve: Callable[..., Server]) -> None:
    server = serve(stall(5))
    begun = time.monotonic()
    with pytest.raises(MissingError, match=r"nothing came for 0\.2 s, 2 times"):
        ask(server, attempts=2, timeout_s=0.2)
    assert time.monotonic() - begun < 4


def test_nobody_there_is_said() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = RemoteSettings(f"http://127.0.0.1:{port}/v1", "big", attempts=2)
    made = RemoteGenerator(settings, sleep=lambda _: None)
    with pytest.raises(MissingError, match="cannot be reached") as caught:
        list(made.generate(ASKED, max_tokens=5))
    assert caught.value.exit_code == 4
    made.close()


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"data: {not json\n\n", "not JSON"),
        (b"data: [1]\n\n", "not a JSON object"),
        (b"data: {}\n\n", "no choices"),
        (b'data: {"choices": 5}\n\n', "no choices"),
        (b'data: {"choices": [{"delta": {"content": 5}}]}\n\n', "content is 5"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "not JSON"),
    ],
)
def test_an_answer_of_another_kind_is_refused(
    serve: Callable[..., Server], body: bytes, what: str
) -> None:
    server = serve(send(body))
    with pytest.raises(DataError, match=what):
        ask(server)
    assert len(server.requests) == 1


def test_an_error_in_the_stream_is_the_servers_word(serve: Callable[..., Server]) -> None:
    server = serve(send(chunk("a") + b'data: {"error": {"message": "out of memory"}}\n\n'))
    with pytest.raises(RequestError, match="out of memory"):
        ask(server)


def test_an_answer_without_end_is_cut(serve: Callable[..., Server]) -> None:
    def flood(handler: BaseHTTPRequestHandler) -> None:
        send(b"data: ")(handler)
        while True:
            handler.wfile.write(b"x" * 65_536)

    server = serve(flood)
    with pytest.raises(DataError, match="more than"):
        ask(server, timeout_s=20)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"url": "ftp://a/v1"}, "url is"),
        ({"url": "localhost:8080"}, "url is"),
        ({"url": "http://me:secret@host/v1"}, "more than a host"),
        ({"url": "http://host/v1?key=1"}, "more than a host"),
        ({"model": ""}, "no model"),
        ({"temperature": -1.0}, "temperature is"),
        ({"attempts": 0}, "attempts is"),
        ({"timeout_s": float("nan")}, "timeout_s is"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        RemoteSettings(**{"url": "http://host/v1", "model": "m", **values})
    assert "secret" not in str(caught.value)


def test_a_key_does_not_travel_unencrypted_and_is_not_shown() -> None:
    with pytest.raises(UsageError, match="unencrypted"):
        RemoteGenerator(RemoteSettings("http://example.org/v1", "m"), key="k3y")
    made = RemoteGenerator(RemoteSettings("https://example.org/v1", "m"), key="k3y")
    assert "k3y" not in repr(vars(made))
    made.close()


def test_a_key_comes_from_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_key() is None
    with pytest.raises(MissingError, match="OTHER"):
        read_key("OTHER")
    monkeypatch.setenv("OTHER", " abc\n")
    assert read_key("OTHER") == "abc"
    (tmp_path / "key").write_text("from-file\n")
    assert read_key(file=tmp_path / "key") == "from-file"
    (tmp_path / "key").write_text("two\nlines")
    with pytest.raises(UsageError, match="not one line") as caught:
        read_key(file=tmp_path / "key")
    assert "two" not in str(caught.value)
