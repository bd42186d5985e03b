"""The client of `serving.py`: many streams at once, each token's time kept.

For: any server that speaks OpenAI's `/v1/completions` and streams; standard library alone, so
that a client costs as little as it can on a machine that it shares with the server.
Not for: starting servers.
Read next: `serving.py`.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stream:
    """One request: its status, seconds to the head of the reply, and when each token came.

    `begun` and `times` are of one clock, in seconds. `reset` is set where the connection broke.
    """

    begun: float
    status: int = 0
    head_s: float = 0.0
    times: list[float] = field(default_factory=list)
    reset: bool = False

    @property
    def first_s(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.begun

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


@dataclass(frozen=True)
class Load:
    """What many streams at once came to."""

    streams: list[Stream]
    seconds: float

    @property
    def tokens(self) -> int:
        """Tokens of all streams."""
        return sum(len(s.times) for s in self.streams)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all streams a second, prompts included in the time."""
        return self.tokens / self.seconds

    @property
    def first_s(self) -> float:
        """Seconds to the first token, the median over streams."""
        return statistics.median(s.first_s for s in self.streams if s.times)

    def gap_s(self, share: float) -> float:
        """Returns the quantile `share` of all gaps between tokens of a stream."""
        gaps = sorted(gap for s in self.streams for gap in s.gaps)
        return gaps[min(len(gaps) - 1, int(share * len(gaps)))]


def body(prompt: Sequence[int], tokens: int, eos: Sequence[int], **more: Any) -> bytes:
    """Returns a request for `tokens` greedy tokens; `eos` may not be drawn, so all come."""
    bias = {str(token): -100 for token in eos}
    values = {
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "logit_bias": bias,
    }
    return json.dumps(values | more).encode()


async def stream(
    address: tuple[str, int],
    content: bytes,
    *,
    path: str = "/v1/completions",
    stop_after: int | None = None,
) -> Stream:
    """Sends one request and reads its events; leaves after `stop_after` of them."""
    host, port = address
    found = Stream(time.perf_counter())
    try:
        reader, writer = await asyncio.open_connection(host, port)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + content)
        line = await reader.readline()
        found.status = int(line.split()[1]) if line else 0
        found.head_s = time.perf_counter() - found.begun
        found.reset = not line
        while line := await reader.readline():
            # A chunk's size stands before it; an event's line is known by how it begins.
            if line.startswith(b"data: {") and b'"text":' in line and b'"usage":{' not in line:
                found.times.append(time.perf_counter())
                if stop_after is not None and len(found.times) >= stop_after:
                    break
        writer.close()
    except (ConnectionError, OSError):
        found.reset = True
    return found


async def together(address: tuple[str, int], contents: Sequence[bytes]) -> Load:
    """Sends all at once, one connection each."""
    begun = time.perf_counter()
    streams = await asyncio.gather(*(stream(address, each) for each in contents))
    return Load(list(streams), time.perf_counter() - begun)
