"""Prompts and new tokens of several conversations at once, timed.

For: the one way that speeds are taken, whatever is made of the seconds.
Not for: choosing what to run (`miudo.evaluate.bench`, `miudo.evaluate.grid`).
Read next: `miudo.evaluate.grid`.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from miudo.errors import MiudoError
from miudo.protocol import Engine, SeqWork, Want

__all__ = ["Conversations"]


class Conversations:
    """`n` new conversations with ids drawn by a fixed rule, open while a `with` block runs.

    A dense decoder takes the same time for any ids. No two prompts begin alike, so that an
    engine that remembers prompts has nothing to remember.
    """

    def __init__(self, engine: Engine, n: int = 1, *, adapter: str | None = None) -> None:
        self._engine, self._n, self._adapter = engine, n, adapter
        self._open: list[int] = []
        self._next: list[int] = []

    def __enter__(self) -> Self:
        for _ in range(self._n):
            self._open.append(self._engine.open())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._open:
            self._engine.close(self._open.pop())

    def prompt(self, length: int, run: int = 0) -> float:
        """Forgets all, takes in `length` ids each and returns the seconds to the next token."""
        self.rewind(0)
        vocab = self._engine.config.vocab_size
        first = [run * 104729 + place * 1299709 for place in range(self._n)]
        return self._step([[(f + i * 7919 + 1) % vocab for i in range(length)] for f in first])

    def decode(self, steps: int) -> float:
        """Takes the most probable token `steps` times, and returns the seconds of all."""
        start = time.perf_counter()
        for _ in range(steps):
            self._step([[token] for token in self._next])
        return time.perf_counter() - start

    def rewind(self, length: int) -> None:
        """Forgets all positions from `length` on."""
        for conversation in self._open:
            self._engine.truncate(conversation, length)

    def _step(self, ids: list[list[int]]) -> float:
        works = [
            SeqWork(conversation, taken, Want.SAMPLE, adapter=self._adapter)
            for conversation, taken in zip(self._open, ids, strict=True)
        ]
        start = time.perf_counter()
        outs = self._engine.step(works)
        seconds = time.perf_counter() - start
        self._next = [out.token for out in outs if out.token is not None]
        if len(self._next) < len(works):
            raise MiudoError("the engine returned no token")
        return seconds
