"""A real server: a process of its own, asked over sockets."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

KEY = "a-key-for-tests"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events of a stream, [DONE] left out; it must be the last."""
        lines = [line for line in self.body.decode().split("\n\n") if line]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen[str]

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        try:
            connection.request(method, path, data, sent)
            reply = connection.getresponse()
            return Reply(reply.status, dict(reply.getheaders()), reply.read())
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        return self.ask("POST", path, body, **headers)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(30)


Start = Callable[..., Server]


def start_server(*arguments: str, **environment: str) -> Server:
    """Starts `miudo serve` on a free port and waits until it takes requests."""
    command = [sys.executable, "-m", "miudo", "serve", "--port", "0", "--json", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline()
    assert line, f"it did not start: {process.wait(10)}"
    return Server(json.loads(line)["url"], process)


@pytest.fixture(scope="session")
def start() -> Start:
    """What starts a server with a table, a key, a limit of its own; who starts it ends it."""
    return start_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    made = start_server("--parallel", "4", "--queue", "4", "--threads", "1")
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture(scope="session")
def locked() -> Iterator[Server]:
    """A server that asks for a key."""
    made = start_server("--threads", "1", MIUDO_API_KEY=KEY)
    yield made
    made.process.kill()
    made.process.wait()
