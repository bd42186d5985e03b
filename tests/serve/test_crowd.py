"""Many at once: everybody is answered, in order, and a full cache keeps nobody out."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from served import CHAT, ENDLESS, ROBOT, TEXT, Server, start_server

MANY = 200


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "log"


@pytest.fixture(scope="module")
def narrow(log: Path) -> Iterator[Server]:
    """One request at a time, few that wait, and little memory."""
    options = ("--parallel", "1", "--queue", "12", "--cache-mb", "4", "--threads", "1")
    with log.open("w") as out:
        made = start_server(*options, "--log", "json", stderr=out)
        yield made
        made.end()


def prompt(number: int, n: int = 8) -> list[int]:
    """Returns ids with which no other number's begin."""
    return [50 + number, *(60 + (number * 7 + i) % 400 for i in range(n - 1))]


@pytest.mark.row("H22")
def test_of_200_at_once_each_is_served_or_told_when_to_come_again(narrow: Server) -> None:
    ready = threading.Barrier(MANY)

    def ask(number: int) -> Any:
        with socket.create_connection(narrow.address):  # one more, that asks nothing
            ready.wait(60)
            return narrow.post(TEXT, ROBOT | {"prompt": prompt(number)})

    with ThreadPoolExecutor(MANY) as pool:
        replies = list(pool.map(ask, range(MANY)))  # a reset would raise here
    found = Counter(reply.status for reply in replies)
    assert set(found) == {200, 429}
    assert found[200] >= 13  # as many as run and wait
    for reply in replies:
        if reply.status == 200:
            assert reply.json["usage"]["completion_tokens"] > 0
        else:
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.json["error"]["code"] == "server_busy"
    assert narrow.post(TEXT, ROBOT).status == 200


@pytest.mark.row("H22")
def test_whoever_comes_first_is_served_first(narrow: Server, log: Path) -> None:
    first = ROBOT | ENDLESS | {"max_tokens": 400}

    def ended() -> list[str]:
        """The order in which the server was done with them: clients' threads may overtake."""
        return re.findall(r'"id": "place-(\d+)"', log.read_text())

    def ask(number: int) -> None:
        body = first if number == 0 else ROBOT | {"prompt": prompt(number)}
        assert narrow.post(TEXT, body, x_request_id=f"place-{number}").status == 200

    with ThreadPoolExecutor(13) as pool:
        asked = []
        for number in range(13):
            asked.append(pool.submit(ask, number))
            deadline = time.monotonic() + 20
            while narrow.figure("miudo:num_requests_waiting") < number:  # it has come
                assert time.monotonic() < deadline
                assert not ended(), "the first must last until all have come"
        assert narrow.post(TEXT, ROBOT).status == 429
        assert told_without_a_body(narrow) == 429
        for each in asked:
            each.result()
    deadline = time.monotonic() + 20
    while len(ended()) < 13:
        assert time.monotonic() < deadline
    assert ended() == [str(number) for number in range(13)]


def told_without_a_body(server: Server) -> int:
    """Sends a request's head alone; returns the status that comes."""
    host, port = server.address
    head = (
        f"POST {TEXT} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        "Content-Length: 100\r\n\r\n"
    )
    with socket.create_connection(server.address, timeout=4) as connection:
        connection.sendall(head.encode())
        return int(connection.recv(1 << 16).split()[1])


LOOKS: list[tuple[str, dict[str, Any]]] = [
    (TEXT, {"prompt": prompt(900, 400), "echo": True, "max_tokens": 0, "logprobs": 1}),
    ("/v1/embeddings", {"input": prompt(901, 400)}),
    ("/inspect/lens", {"content": prompt(902, 200)}),
    ("/inspect/attention", {"content": prompt(903, 200), "layers": [0]}),
    ("/suggest", {"text": "The little robot went " * 80}),
]


@pytest.mark.parametrize(("path", "look"), LOOKS)
def test_a_cache_full_of_what_is_over_keeps_no_look_out(
    narrow: Server, path: str, look: dict[str, Any]
) -> None:
    for i in range(12):
        body = {"prompt": prompt(100 + i, 400), "max_tokens": 60, "seed": i} | ENDLESS
        assert narrow.post(TEXT, body).status == 200
    assert narrow.figure("miudo:kv_cache_usage_perc") > 0.6
    assert narrow.post(path, look).status == 200
    assert narrow.post(TEXT, ROBOT).status == 200


@pytest.mark.row("H26")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"content": "word thing " * 300_000}),
        ("/tokenize", {"content": "word thing " * 300_000, "parse_special": True}),
        (TEXT, {"prompt": "word thing " * 600_000}),
        (CHAT, {"messages": [{"role": "user", "content": "word thing " * 600_000}]}),
        ("/suggest", {"text": "word thing " * 600_000}),
    ],
)
def test_a_long_text_holds_nobody_up(narrow: Server, path: str, body: dict[str, Any]) -> None:
    slowest = 0.0
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(narrow.post, path, body)
        while not long.done():
            begun = time.monotonic()
            assert narrow.ask("GET", "/health").status == 200
            slowest = max(slowest, time.monotonic() - begun)
    assert long.result().status in (200, 400)
    assert slowest < 1.5  # it was as long as cutting the text into tokens: 2 to 13 s
