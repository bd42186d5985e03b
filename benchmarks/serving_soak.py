"""Minutes of mixed load on a real server, with clients that leave: does its memory grow?

For: the claim that what is answered, cancelled and refused leaves nothing behind.
Not for: speed (`benchmarks/engine.py`).
Read next: `miudo.serve.worker`.

    python benchmarks/serving_soak.py --minutes 5 [--secrets 10000]

Prints resident memory over time, and its slope by least squares over the second half, when the
cache of beginnings is full. Half of the clients have another key and a secret in their prompts;
whatever the others read is searched for it. With `--secrets` it ends after so many requests of
the others.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
SECRET = "xylophone7391"  # noqa: S105 - what must not be seen elsewhere
CLIENTS = 6


class Load:
    """What the clients did and saw."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self.address = (address.hostname or "", address.port or 0)
        self.done: Counter[str] = Counter()
        self.over = threading.Event()
        self.leaks = 0

    def client(self, number: int) -> None:
        """Asks until it is over; even numbers have a secret, odd ones look for it."""
        rng = random.Random(number)  # noqa: S311 - repeatable, no secret
        key = "with-secret" if number % 2 == 0 else "without"
        while not self.over.is_set():
            path, body = _asked(rng, key)
            leaves = rng.random() < 0.3
            try:
                status, text = self._ask(path, body, key, rng.random() * 0.5 if leaves else None)
            except (OSError, http.client.HTTPException) as error:
                status, text = type(error).__name__, ""
            self.done[f"{key} {'left' if leaves else status}"] += 1
            if key == "without" and SECRET in text:
                self.leaks += 1

    def _ask(
        self, path: str, body: dict[str, Any], key: str, leave_s: float | None
    ) -> tuple[str, str]:
        connection = http.client.HTTPConnection(*self.address, timeout=120)
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        try:
            connection.request("POST", path, json.dumps(body), headers)
            if leave_s is not None:
                time.sleep(leave_s)
                return "left", ""
            reply = connection.getresponse()
            return str(reply.status), reply.read().decode()
        finally:
            connection.close()


def _asked(rng: random.Random, key: str) -> tuple[str, dict[str, Any]]:
    front = f"My word is {SECRET}. " if key == "with-secret" else "My word is "
    words = " ".join(
        rng.choice(("robot", "sea", "tree", "house")) for _ in range(rng.randint(1, 60))
    )
    body: dict[str, Any] = {"max_tokens": rng.randint(1, 60), "seed": rng.randrange(1000)}
    body |= {"stream": rng.random() < 0.5}
    kind = rng.random()
    if kind < 0.1:
        return TEXT, body | {"prompt": words, "max_tokens": -1}
    if kind < 0.5:
        messages = [{"role": "user", "content": front + words}]
        return CHAT, body | {"messages": messages, "logprobs": rng.random() < 0.3}
    return TEXT, body | {"prompt": front + words, "n": rng.randint(1, 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--secrets", type=int, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys, log = Path(folder) / "keys", Path(folder) / "log"
        keys.write_text("with-secret\nwithout\n")
        command = [sys.executable, "-m", "miudo", "serve", "--port", "0", "--json"]
        command += ["--key-file", str(keys), "--log", "json", "--parallel", "4", "--queue", "2"]
        command += ["--threads", "1", "--cache-mb", "24"]
        with log.open("w") as out:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, text=True)
            try:
                with process.stdout or sys.stdin as told:
                    load = Load(json.loads(told.readline())["url"])
                rows = watched(load, process, given.minutes * 60.0, given.secrets)
            finally:
                process.kill()
                process.wait()
        leaks = load.leaks + (SECRET in log.read_text())
    for name, count in sorted(load.done.items()):
        print(f"{name:30} {count:7}")
    half = rows[len(rows) // 2 :]
    slope = float(np.polyfit([at / 60.0 for at, _ in half], [mib for _, mib in half], 1)[0])
    print(f"{load.done.total()} requests, secret seen by others or in the log: {leaks}")
    print(f"memory at the end {rows[-1][1]:.1f} MiB, slope of the second half {slope:+.2f} MiB/min")
    return 1 if leaks else 0


def watched(
    load: Load, process: subprocess.Popen[str], seconds: float, secrets: int | None
) -> list[tuple[float, float]]:
    """Returns resident memory (seconds, MiB) while the clients ask."""
    clients = [threading.Thread(target=load.client, args=(i,)) for i in range(CLIENTS)]
    for client in clients:
        client.start()
    resident, begun, rows = psutil.Process(process.pid), time.monotonic(), []
    try:
        while (at := time.monotonic() - begun) < seconds:
            asked = sum(n for name, n in load.done.items() if name.startswith("without"))
            if secrets is not None and asked >= secrets:
                break
            rows.append((at, resident.memory_info().rss / 2**20))
            if len(rows) % 15 == 1:
                print(f"{at:6.0f} s   {rows[-1][1]:7.1f} MiB   {load.done.total():6} requests")
            time.sleep(1.0)
    finally:
        load.over.set()
        for client in clients:
            client.join()
    return rows


if __name__ == "__main__":
    sys.exit(main())
