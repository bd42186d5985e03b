"""Requests that nobody should send, some thousands of them, to a real server: what it answers.

For: the claim that no request is answered 5xx but 503 and 504.
Not for: rows of docs/bad-input.md one by one (`tests/serve`).
Read next: `miudo.serve.describing`.

    python benchmarks/serving_fuzz.py --requests 3000

Three ways: schemathesis over the server's own /openapi.json; valid bodies with one thing wrong;
requests whose bytes are damaged. Prints the answers by way and status. It fails if a status is
5xx but 503 or 504, if a connection that should be answered is not, if the server is not there
afterwards, or if a valid request then has another answer than before.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psutil

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
VALID: dict[str, dict[str, Any]] = {
    TEXT: {"prompt": "The little robot", "max_tokens": 4, "temperature": 0},
    CHAT: {
        "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0,
        "stop": ["x"], "logprobs": True, "top_logprobs": 2, "seed": 1,
    },
}  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, 1e308, -1e308,
    1e-320, "", "x", "x" * 70_000, "\0", "\ud800", "10", [], [[]], [None], ["x"] * 5000, {},
    {"a": {}}, [1, "x"], [10**9], [-1], {"5": 1e9}, {"": 0}, "../../x", "http://127.0.0.1/",
    {"type": "json_schema"}, [{"role": "user", "content": "x" * 3000}], [{"role": "tool"}],
)  # fmt: skip
ALLOWED_FAILURES = (503, 504)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    process, url = start()
    counts: dict[str, Counter[int]] = {}
    try:
        before = answer(url)
        memory = psutil.Process(process.pid).memory_info().rss
        counts["schemathesis"] = described(url, given.requests // 3, given.seed)
        rng = random.Random(given.seed)  # noqa: S311 - repeatable, no secret
        counts["one thing wrong"] = Counter(wrong(url, rng, given.requests // 3))
        counts["damaged bytes"] = Counter(damaged(url, rng, given.requests // 3))
        grown = psutil.Process(process.pid).memory_info().rss - memory
        same = answer(url) == before
        alive = process.poll() is None
    finally:
        process.kill()
        process.wait()
    return report(counts, grown, same=same, alive=alive)


def report(counts: dict[str, Counter[int]], grown: int, *, same: bool, alive: bool) -> int:
    """Prints the table; returns the exit code. Status 0: closed without an answer."""
    bad = 0
    for way, found in counts.items():
        shown = "  ".join(f"{status}: {n}" for status, n in sorted(found.items()))
        print(f"{way:16} {found.total():6} requests   {shown}")
        bad += sum(n for s, n in found.items() if s >= 500 and s not in ALLOWED_FAILURES)
    total = sum(found.total() for found in counts.values())
    print(f"{total} requests, {bad} answered 5xx but 503 and 504, memory grew {grown >> 20} MiB")
    print(f"alive: {alive}   a valid request has the same answer: {same}")
    return 0 if bad == 0 and same and alive else 1


def start() -> tuple[subprocess.Popen[str], str]:
    """Returns a server of the package's model and its address."""
    command = [sys.executable, "-m", "miudo", "serve", "--port", "0", "--json", "--log", "none"]
    command += ["--threads", "1", "--patience", "2s"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process.stdout or sys.stdin as out:
        return process, json.loads(out.readline())["url"]


def send(url: str, path: str, body: bytes, **headers: str) -> int:
    """Returns the status of a POST; 0 where the server closed without one."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    sent = {"content-type": "application/json", "x-request-timeout": "2", **headers}
    try:
        connection.request("POST", path, body, sent)
        reply = connection.getresponse()
        reply.read()
        return reply.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def answer(url: str) -> str:
    """Returns what a valid request is answered."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    body = json.dumps(VALID[TEXT] | {"max_tokens": 20})
    connection.request("POST", TEXT, body, {"content-type": "application/json"})
    text = str(json.loads(connection.getresponse().read())["choices"][0]["text"])
    connection.close()
    return text


def described(url: str, requests: int, seed: int) -> Counter[int]:
    """Asks what schemathesis makes of /openapi.json, valid and not, over all operations."""
    import hypothesis
    import schemathesis

    found: Counter[int] = Counter()
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    for operation in operations:
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            cases = operation.as_strategy(generation_mode=mode)
            n = max(10, requests // (2 * len(operations)))

            @hypothesis.seed(seed)
            @hypothesis.settings(
                max_examples=n,
                database=None,
                deadline=None,
                suppress_health_check=list(hypothesis.HealthCheck),
                phases=[hypothesis.Phase.generate],
            )
            @hypothesis.given(case=cases)
            def ask(case: Any) -> None:
                reply = case.call(base_url=url, headers={"x-request-timeout": "2"}, timeout=60)
                found[reply.status_code] += 1

            try:
                ask()
            except (hypothesis.errors.Unsatisfiable, hypothesis.errors.InvalidArgument):
                continue  # nothing wrong can be said where nothing is taken
    return found


def wrong(url: str, rng: random.Random, requests: int) -> Iterator[int]:
    """Yields the statuses of valid bodies with one value odd, gone, doubled or moved."""
    names = ["n", "stream", "stop", "seed", "logit_bias", "top_p", "echo", "best_of", "model", "x"]
    for _ in range(requests):
        path = rng.choice([*VALID, "/models/load", "/models/unload"])
        body = dict(VALID.get(path, {"model": "nobody"}))
        name = rng.choice([*body, *names])
        body[name] = rng.choice(ODD)
        if rng.random() < 0.2:
            body.pop(rng.choice(list(body)))
        text = json.dumps(body)
        if rng.random() < 0.1:
            text = text[:-1] + f',"{name}":1}}'
        if rng.random() < 0.1:
            text = text.replace(":", rng.choice([":NaN,", "::", ":1e999", ":" + "[" * 500]), 1)
        yield send(url, path, text.encode())


def damaged(url: str, rng: random.Random, requests: int) -> Iterator[int]:
    """Yields the statuses of requests whose bytes were changed, cut, doubled or moved."""
    address = urlsplit(url)
    body = json.dumps(VALID[TEXT]).encode()
    head = (
        f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"X-Request-Timeout: 2\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    for _ in range(requests):
        data = bytearray(head.encode() + body)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data))
            way = rng.randrange(4)
            if way == 0:
                data[at] = rng.randrange(256)
            elif way == 1:
                del data[at : at + rng.randint(1, 9)]
            elif way == 2:
                data[at:at] = data[at : at + rng.randint(1, 30)]
            else:
                data[at:at] = rng.choice([b"\r\n", b"\0", b"\n\n", b": ", b"chunked", b"\xff" * 99])
            if len(data) < 2:
                break
        yield exchange((address.hostname or "", address.port or 0), bytes(data))


def exchange(address: tuple[str, int], data: bytes) -> int:
    """Returns the first status that comes for `data`; 0 if the server only closes."""
    with socket.create_connection(address, timeout=60) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            reply = connection.recv(65536)
        except OSError:
            return 0
    parts = reply.split(b" ", 2)
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0


if __name__ == "__main__":
    sys.exit(main())
