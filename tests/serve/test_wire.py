"""Connections that are slow, endless, ambiguous or too many; the others go on."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from served import ENDLESS, EVERYWHERE, ROBOT, TEXT, Server, start_server

PATIENCE_S = 1.0
SOON_S = PATIENCE_S + 6.0  # generous: machines are busy


@pytest.fixture(scope="module")
def hasty() -> Iterator[Server]:
    made = start_server("--patience", "1s", "--threads", "1", "--log", "none")
    yield made
    made.end()


def dial(server: Server, **options: Any) -> socket.socket:
    return socket.create_connection(server.address, timeout=20, **options)


def heard(connection: socket.socket) -> bytes:
    """Returns all that comes until the server closes; a reset is no answer."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def answer_of(server: Server, request: bytes) -> tuple[int, bytes]:
    with dial(server) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        reply = heard(connection)
        return int(reply.split(b" ", 2)[1]), reply


GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


@pytest.mark.row("H1")
def test_heads_that_never_end_are_closed_and_others_go_on(hasty: Server) -> None:
    starts = [b"GET /hea", GET, GET + b"X-Slow: 1", b"\r\n"]
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(dial(hasty)) for _ in range(200)]
        for i, connection in enumerate(slow):
            connection.sendall(starts[i % len(starts)])
        assert hasty.ask("GET", "/health").status == 200  # meanwhile
        for i, connection in enumerate(slow):
            if i % 4 == 2 and time.monotonic() - begun < PATIENCE_S / 2:
                connection.sendall(b"2")  # a byte now and then buys no time
        replies = [heard(connection) for connection in slow]
    assert time.monotonic() - begun < SOON_S
    assert {reply[:12] for i, reply in enumerate(replies) if i % 4 != 3} == {b"HTTP/1.1 408"}
    assert hasty.ask("GET", "/health").status == 200


@pytest.mark.row("H1")
def test_a_head_in_pieces_and_in_time_is_answered(hasty: Server) -> None:
    with dial(hasty) as connection:
        for piece in (GET[:9], GET[9:], b"\r\n"):
            connection.sendall(piece)
            time.sleep(PATIENCE_S / 5)
        assert heard(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.row("H1")
def test_a_second_request_has_no_longer_time_than_the_first(hasty: Server) -> None:
    with dial(hasty) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he")
        begun = time.monotonic()
        connection.sendall(b"a")
        reply = heard(connection)
    assert reply.count(b"HTTP/1.1") == 2
    assert b"HTTP/1.1 408" in reply
    assert time.monotonic() - begun < SOON_S


def head(length: int, **more: str) -> bytes:
    lines = [f"{name}: {value}\r\n" for name, value in more.items()]
    return (
        f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n{''.join(lines)}\r\n"
    ).encode()


@pytest.mark.row("H2")
def test_bodies_that_stall_or_trickle_are_closed(hasty: Server) -> None:
    begun = time.monotonic()
    with dial(hasty) as stalled, dial(hasty) as trickling:
        stalled.sendall(head(100) + b"abc")
        trickling.sendall(head(100) + b"a")
        with contextlib.suppress(OSError):
            for _ in range(100):
                trickling.sendall(b"b")
                time.sleep(0.05)
        for connection in (stalled, trickling):
            assert heard(connection).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - begun < SOON_S + 5


@pytest.mark.row("H2")
def test_a_large_body_has_the_time_that_its_size_needs(hasty: Server) -> None:
    body = json.dumps(ROBOT | {"user": "u" * 100_000}).encode()
    with dial(hasty) as connection:
        connection.sendall(head(len(body), Connection="close"))
        step = len(body) // 8 + 1
        for at in range(0, len(body), step):  # 1.6 times the patience in all
            connection.sendall(body[at : at + step])
            time.sleep(PATIENCE_S / 5)
        assert heard(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.row("H2")
def test_a_body_that_nobody_wants_holds_no_connection(hasty: Server) -> None:
    with dial(hasty) as connection:
        connection.sendall(head(10**6).replace(b"localhost", b"evil.example") + b"x")
        assert heard(connection).startswith(b"HTTP/1.1 421")


@pytest.mark.row("H3")
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (GET + b"A: b\r\n" * 90 + b"\r\n", 200),
        (GET + b"A: b\r\n" * 10_000 + b"\r\n", 431),
        (GET + b"A: b\r\n" * 101 + b"\r\n", 431),
        (GET + b"A: " + b"b" * 20_000 + b"\r\n\r\n", 200),
        (GET + b"A: " + b"b" * 70_000 + b"\r\n\r\n", 431),
        (GET.replace(b"/health", b"/health?" + b"x" * 8_000) + b"\r\n", 200),
        (GET.replace(b"/health", b"/health?" + b"x" * 9_000) + b"\r\n", 414),
        (GET.replace(b"/health", b"/health?" + b"x" * 1_000_000) + b"\r\n", 431),
    ],
)
def test_heads_are_bounded(hasty: Server, request_: bytes, status: int) -> None:
    got, reply = answer_of(hasty, request_)
    assert got == status
    assert status == 200 or b'"error"' in reply


BODY = json.dumps(ROBOT).encode()
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.row("H4")
@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (f"Content-Length: {len(BODY)}", BODY, 200),
        ("Transfer-Encoding: chunked", CHUNKED, 200),
        ("Content-Length: -1", BODY, 400),
        (f"Content-Length: +{len(BODY)}", BODY, 400),
        ("Content-Length: 5 5", BODY, 400),
        ("Content-Length: 0x10", BODY, 400),
        ("Content-Length: " + "9" * 40, BODY, 400),
        (f"Content-Length: {len(BODY)}\r\nContent-Length: 5", BODY, 400),
        (f"Content-Length: {len(BODY)}\r\nTransfer-Encoding: chunked", CHUNKED, 400),
        (f"Transfer-Encoding: chunked\r\nContent-Length: {len(CHUNKED)}", CHUNKED, 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", CHUNKED, 400),
        ("Transfer-Encoding: identity, chunked", CHUNKED, 400),
        ("Transfer-Encoding : chunked", CHUNKED, 400),
        ("Transfer-Encoding: chunked", b"-1\r\n" + BODY, 400),
        ("Transfer-Encoding: chunked", b"zz\r\n" + BODY, 400),
    ],
)
def test_lengths_that_two_programs_read_in_two_ways(
    hasty: Server, headers: str, body: bytes, status: int
) -> None:
    start = f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with dial(hasty) as connection:
        smuggled = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(f"{start}{headers}\r\n\r\n".encode() + body + smuggled)
        reply = heard(connection)
    assert int(reply.split(b" ", 2)[1]) == status
    # What follows a request that cannot be told from it is no request.
    assert reply.count(b"HTTP/1.1 ") == (2 if status == 200 else 1)


@pytest.mark.row("H4")
def test_the_old_protocol_has_no_chunks(hasty: Server) -> None:
    start = f"POST {TEXT} HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert answer_of(hasty, start.encode() + CHUNKED)[0] == 400


@pytest.mark.row("H21")
def test_a_reader_that_never_reads_is_cancelled(hasty: Server) -> None:
    asked = {"prompt": "Once", "max_tokens": 480, "stream": True, "logprobs": 20, "n": 4} | ENDLESS
    body = json.dumps(asked).encode()
    before = hasty.figure("process_resident_memory_bytes")
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stack.enter_context(connection)
            connection.connect(hasty.address)
            connection.sendall(head(len(body)) + body)
        deadline = time.monotonic() + 60
        while hasty.figure("miudo:request_success_total", finished_reason="abort") < 3:
            assert time.monotonic() < deadline, "they hold their places"
            time.sleep(0.1)
    assert hasty.figure("process_resident_memory_bytes") - before < 64 << 20
    assert hasty.post(TEXT, asked | {"stream": False}).status == 200  # one that reads has it all


@pytest.mark.row("H22")
def test_two_hundred_at_once_are_served_or_told_to_come_again() -> None:
    server = start_server("--parallel", "2", "--queue", "4", "--threads", "1", "--log", "none")
    try:
        asked = ROBOT | {"max_tokens": 60}
        with ThreadPoolExecutor(200) as pool:
            replies = list(pool.map(lambda _: server.post(TEXT, asked), range(200)))
        statuses = [reply.status for reply in replies]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 6
        refused = [reply for reply in replies if reply.status == 429]
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
        assert server.post(TEXT, asked).status == 200
        stream = server.post(TEXT, asked | {"stream": True, "n": 1})
        assert stream.events
    finally:
        server.end()


@pytest.mark.row("H22")
def test_a_stream_that_finds_no_place_has_a_status_that_says_so() -> None:
    server = start_server("--parallel", "1", "--queue", "0", "--threads", "1", "--log", "none")
    long = {"prompt": "Once", "max_tokens": 400, "stream": True} | ENDLESS
    try:
        with dial(server) as first:
            body = json.dumps(long).encode()
            first.sendall(head(len(body)) + body)
            first.recv(4096)  # it runs
            reply = server.post(TEXT, long)
            assert reply.status == 429
            assert reply.headers["retry-after"]
    finally:
        server.end()


@pytest.mark.row("H27")
def test_few_files_mean_few_connections_and_polite_refusals() -> None:
    limits = (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)  # the server inherits it
    try:
        server = start_server("--threads", "1", "--log", "none", "--patience", "2s")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    try:
        with contextlib.ExitStack() as stack:
            many = [stack.enter_context(dial(server)) for _ in range(32)]
            for connection in many:
                connection.sendall(GET[:-20])
            refused = answer_of(server, GET + b"\r\n")
            assert refused[0] == 503
            assert b"retry-after" in refused[1].lower()
            crowd = [stack.enter_context(dial(server)) for _ in range(60)]  # more than files
            assert len(crowd) == 60
        deadline = time.monotonic() + 20
        while answer_of(server, GET + b"\r\n")[0] != 200:
            assert time.monotonic() < deadline, "it did not recover"
            time.sleep(0.1)
        assert server.post(TEXT, ROBOT).status == 200
    finally:
        server.end()


@pytest.mark.row("H9")
@pytest.mark.parametrize("address", [EVERYWHERE, "::", "192.0.2.1", "nowhere"])
def test_no_address_that_others_reach_without_a_key(address: str) -> None:
    command = [sys.executable, "-m", "miudo", "serve", "--host", address, "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert address in done.stderr


@pytest.mark.row("H9")
def test_every_address_with_a_key() -> None:
    server = start_server("--host", EVERYWHERE, "--log", "none", MIUDO_API_KEY="k")
    try:
        assert server.ask("GET", "/health", host="127.0.0.1").status == 200
        assert server.ask("GET", "/v1/models").status in (401, 421)
    finally:
        server.end()
