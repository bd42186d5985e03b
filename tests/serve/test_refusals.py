"""Refusals before the body is read: whoever is refused hears so, however late the body comes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from miudo.serve.guard import Guard, Rules
from miudo.serve.receiving import BodyLimits
from miudo.serve.standing import Standing
from miudo.serve.wire import WireLimits, careful

IDLE_S = 1
PATIENCE_S = 2.0
SOON_S = 6.0  # generous: machines are busy


async def taken(scope: Scope, receive: Receive, send: Send) -> None:
    await Request(scope, receive).body()
    await Response(b"{}")(scope, receive, send)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that is full for what is posted to /full."""
    guard = Guard(
        taken,
        Standing(phase="ready"),
        Rules(limits=BodyLimits(size_bytes=1 << 20, patience_s=PATIENCE_S)),
        full=lambda path: path == "/full",
    )
    server = uvicorn.Server(
        uvicorn.Config(
            guard,
            http=careful(WireLimits()),  # type: ignore[arg-type]
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=1,
            log_config=None,
            lifespan="off",
            ws="none",
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        work = lambda: asyncio.run(server.serve(sockets=[listening]))  # noqa: E731
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(20)


def dial(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def head(length: int, *more: str, path: str = "/full", host: str = "localhost") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def heard(connection: socket.socket) -> bytes:
    """Returns all that comes until the server closes; a reset is no answer."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("pause_s", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("size", [200, 200_000])
@pytest.mark.parametrize(("host", "status"), [("localhost", b"429"), ("evil.example", b"421")])
def test_whoever_closes_and_sends_the_body_late_hears_why(
    port: int, pause_s: float, size: int, host: str, status: bytes
) -> None:
    with dial(port) as connection:
        connection.sendall(head(size, "Connection: close", host=host))
        for part in (b"x" * (size // 2), b"x" * (size - size // 2)):
            time.sleep(pause_s)
            connection.sendall(part)
        assert heard(connection).split(b" ", 2)[1] == status


def test_it_is_told_before_the_body_comes(port: int) -> None:
    with dial(port) as connection:
        connection.sendall(head(10))
        reply = b""
        while b"\r\n\r\n" not in reply or not reply.endswith(b"}"):
            reply += connection.recv(4096)
        assert reply.startswith(b"HTTP/1.1 429")


@pytest.mark.parametrize("path", ["/full", "/taken"])
@pytest.mark.parametrize("pause_s", [0.0, 0.3])
def test_the_next_request_is_answered_and_an_idle_connection_is_closed(
    port: int, path: str, pause_s: float
) -> None:
    with dial(port) as connection:
        for _ in range(2):
            connection.sendall(head(10, path=path))
            time.sleep(pause_s)
            connection.sendall(b"0123456789")
        begun = time.monotonic()
        assert heard(connection).count(b"HTTP/1.1 ") == 2
        assert IDLE_S / 2 < time.monotonic() - begun < SOON_S


def test_a_body_that_does_not_come_holds_the_connection_for_its_patience_alone(port: int) -> None:
    with dial(port) as connection:
        begun = time.monotonic()
        connection.sendall(head(10))
        assert heard(connection).startswith(b"HTTP/1.1 429")
        assert PATIENCE_S / 2 < time.monotonic() - begun < PATIENCE_S + SOON_S


def test_an_idle_connection_is_closed_though_its_body_came_later_than_it_may(port: int) -> None:
    with dial(port) as connection:
        connection.sendall(head(10))
        time.sleep(PATIENCE_S + 0.4)  # within the second that it lingers
        connection.sendall(b"0123456789")
        assert heard(connection).startswith(b"HTTP/1.1 429")


def test_a_body_without_end_is_not_read_for_ever(port: int) -> None:
    with dial(port) as connection:
        begun = time.monotonic()
        connection.sendall(head(1 << 40))
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begun < 2 * SOON_S:
                connection.sendall(b"x" * 65536)
        assert time.monotonic() - begun < SOON_S


def test_only_what_is_posted_is_refused(port: int) -> None:
    with dial(port) as connection:
        asked = b"GET /full HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(asked)
        assert heard(connection).startswith(b"HTTP/1.1 200")


def test_whoever_waits_to_be_told_to_send_is_told_not_to(port: int) -> None:
    with dial(port) as connection:
        begun = time.monotonic()
        connection.sendall(head(10, "Expect: 100-continue"))
        reply = heard(connection)
        assert reply.startswith(b"HTTP/1.1 429")
        assert b"connection: close" in reply.lower()
        assert time.monotonic() - begun < PATIENCE_S
