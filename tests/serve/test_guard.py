"""Who may ask: keys on every route, hosts, origins."""

from __future__ import annotations

import socket
from typing import Any

import pytest

KEY = "a-key-for-tests"
ROUTES = [
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"),
    ("POST", "/v1/responses"), ("POST", "/v1/embeddings"), ("POST", "/tokenize"),
    ("POST", "/suggest"), ("POST", "/inspect/lens"), ("GET", "/inspect/model/miudo-6m"),
    ("GET", "/v1/models/miudo-6m"), ("GET", "/nowhere"), ("GET", "//v1//models"),
    ("GET", "/v1/%2e%2e/v1/models"), ("GET", "/health/"), ("GET", "/HEALTH"),
]  # fmt: skip


@pytest.mark.row("H8")
@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Bearer {KEY}x"}, {"authorization": f"Basic {KEY}"},
        {"authorization": KEY}, {"x_api_key": "wrong"}, {"authorization": "Bearer " + "k" * 20_000},
    ],
)  # fmt: skip
def test_without_a_valid_key_nothing_is_there(
    locked: Any, method: str, path: str, headers: dict[str, str]
) -> None:
    reply = locked.ask(method, path, {} if method == "POST" else None, **headers)
    assert reply.status == 401
    assert reply.json["error"]["code"] == "invalid_api_key"


@pytest.mark.row("H8")
def test_a_key_in_the_query_is_no_key(locked: Any) -> None:
    assert locked.ask("GET", f"/v1/models?api_key={KEY}&key={KEY}").status == 401


@pytest.mark.parametrize("header", [{"authorization": f"Bearer {KEY}"}, {"x_api_key": KEY}])
def test_a_valid_key_opens(locked: Any, header: dict[str, str]) -> None:
    assert locked.ask("GET", "/v1/models", **header).status == 200
    assert locked.ask("GET", "/health").status == 200  # whether it lives is no secret


@pytest.mark.row("H7")
@pytest.mark.parametrize(
    "host", ["evil.example", "x/?", "x/v1/models?", "", "localhost.evil.example", "127.0.0.1:x"]
)
def test_other_hosts_are_misdirected(server: Any, host: str) -> None:
    assert raw(server, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n\r\n") in (400, 421)


@pytest.mark.row("H7")
def test_two_hosts_or_none_are_refused(server: Any) -> None:
    two = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"
    assert raw(server, two) in (400, 421)
    assert raw(server, "GET /v1/models HTTP/1.1\r\n\r\n") in (400, 421)
    assert raw(server, "GET /v1/models HTTP/1.1\r\nHost: localhost:99\r\n\r\n") == 200


def test_pages_of_other_origins_may_not_ask(server: Any) -> None:
    assert server.ask("GET", "/v1/models", origin="http://evil.example").status == 403
    assert server.ask("GET", "/v1/models", origin="null").status == 403
    assert server.ask("GET", "/v1/models", origin=server.url).status == 200
    assert "access-control-allow-origin" not in server.ask("GET", "/v1/models").headers


def raw(server: Any, request: str) -> int:
    """Returns the status of a request that no client library would send."""
    with socket.create_connection(server.address, timeout=20) as connection:
        connection.sendall(request.encode("latin-1"))
        return int(connection.recv(65536).split(b" ", 2)[1])
