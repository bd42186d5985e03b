"""A server in a process of its own, and what tests ask it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from miudo.formats import open_model
from miudo.hub.resolve import embedded_path

KEY = "a-key-for-tests"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - what is refused without a key
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ROBOT: dict[str, Any] = {"prompt": "The little robot", "max_tokens": 6, "temperature": 0}
ENDLESS = {"logit_bias": {str(i): -100 for i in open_model(embedded_path()).config.eos_ids}}
"""What makes an answer of the package's model as long as it may be."""


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
    key: str | None = None

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return "127.0.0.1" if parts.hostname == EVERYWHERE else parts.hostname, parts.port

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

    def figure(self, name: str, /, **labels: str) -> float:
        """Returns the sum of a metric's samples that have these labels."""
        key = {"authorization": f"Bearer {self.key}"} if self.key else {}
        total = 0.0
        for line in self.ask("GET", "/metrics", **key).body.decode().splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name:
                total += float(value) * all(f'{k}="{v}"' in sample for k, v in labels.items())
        return total

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()
        self.process.wait()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(30)


def start_server(*arguments: str, before: str = "", stderr: Any = None, **env: str) -> Server:
    """Starts `miudo serve` on a free port and waits until it takes requests.

    `before` is code that the process runs first, to break something in it.
    """
    code = f"import sys\n{before}\nfrom miudo.cli.main import main\nsys.exit(main())"
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--json", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=os.environ | env
    )
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline()
    assert line, f"it did not start: {process.wait(10)}"
    return Server(json.loads(line)["url"], process, env.get("MIUDO_API_KEY"))


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A small server, of whose places a test can run out."""
    made = start_server("--parallel", "4", "--queue", "4", "--threads", "1")
    yield made
    made.end()


@pytest.fixture(scope="session")
def locked() -> Iterator[Server]:
    """A server that asks for a key."""
    made = start_server("--threads", "1", MIUDO_API_KEY=KEY)
    yield made
    made.end()
