"""A scripted engine: the Engine protocol without a model.

For: tests of everything that stands on an engine (generation, scheduler, server, CLI).
Not for: numbers about models.
Read next: `miudo.engine.generate`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from miudo.adapter import Adapter, AdapterBook, check_adapter
from miudo.checks import check_batch, check_ids, check_length
from miudo.config import ModelConfig
from miudo.engine.pages import PageBook
from miudo.errors import RequestError
from miudo.protocol import FloatArray, Scores, SeqWork, StepOut, Want
from miudo.sampling import log_softmax_at, sample

__all__ = ["FakeEngine", "babble", "follow"]


def follow(script: Sequence[int], vocab_size: int) -> Callable[[Sequence[int]], FloatArray]:
    """Returns a model that predicts `script` in order, whatever the ids; then its last id."""

    def logits(ids: Sequence[int]) -> FloatArray:
        values = np.zeros(vocab_size, dtype=np.float32)
        values[script[min(len(ids) - 1, len(script) - 1)]] = 20.0
        return values

    return logits


def babble(
    vocab_size: int, *, order: int | None = None, seed: int = 0
) -> Callable[[Sequence[int]], FloatArray]:
    """Returns a model whose logits are noise, a function of the last `order` ids, or of all."""

    def logits(ids: Sequence[int]) -> FloatArray:
        counted = np.asarray(ids if order is None else ids[-order:], dtype=np.int64)
        rng = np.random.default_rng([seed, zlib.crc32(counted.tobytes())])
        return 3 * rng.standard_normal(vocab_size, dtype=np.float32)

    return logits


class FakeEngine:
    """Answers every step from `logits_of`: ids so far to logits [V].

    `steps` counts work items, `opened` and `closed` conversations, forked ones included. Adapters
    follow the rules of every engine and change no logits; `cache_pages` is a budget of pages,
    taken as the native engine takes them.
    """

    def __init__(
        self,
        config: ModelConfig,
        logits_of: Callable[[Sequence[int]], FloatArray],
        *,
        cache_pages: int = 1 << 30,
        page_positions: int = 32,
    ) -> None:
        self._config, self._logits_of = config, logits_of
        self._ids: dict[int, list[int]] = {}
        self._pages = PageBook(cache_pages, page_positions)
        self._book = AdapterBook()
        self.steps = self.opened = self.closed = 0

    @property
    def config(self) -> ModelConfig:
        """The model that it pretends to run."""
        return self._config

    @property
    def pages_used(self) -> int:
        """Pages that conversations hold now; shared ones count once."""
        return self._pages.used

    def open(self) -> int:
        """Returns a new, empty conversation."""
        self.opened += 1
        self._ids[self.opened] = []
        self._pages.open(self.opened)
        return self.opened

    def fork(self, conversation: int, length: int) -> int:
        """Returns a new conversation with another's first `length` positions."""
        held = self._ids[self._known(conversation)]
        check_length(length, len(held))
        self.opened += 1
        self._ids[self.opened] = held[:length]
        self._book.fork(conversation, self.opened, length)
        self._pages.fork(conversation, self.opened, length)
        return self.opened

    def close(self, conversation: int) -> None:
        """Frees a conversation."""
        self._pages.close(self._known(conversation))
        self.closed += 1
        del self._ids[self._known(conversation)]
        self._book.bound.pop(conversation, None)

    def length(self, conversation: int) -> int:
        """Returns how many positions the conversation holds."""
        return len(self._ids[self._known(conversation)])

    def truncate(self, conversation: int, length: int) -> None:
        """Forgets all positions from `length` on."""
        held = self._ids[self._known(conversation)]
        check_length(length, len(held))
        del held[length:]
        self._pages.truncate(conversation, length)
        if not length:
            self._book.bound.pop(conversation, None)

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        """Lets works name `name`, as every engine that runs adapters."""
        check_adapter(self._config, adapter, where=f"adapter {name}")
        self._book.add(name, adapter)

    def remove_adapter(self, name: str) -> None:
        """Forgets an adapter. Raises RequestError if it is unknown or a conversation has it."""
        self._book.remove(name)

    def step(self, batch: Sequence[SeqWork]) -> list[StepOut]:
        """Takes in every item's ids and returns tokens and logits; no insides."""
        check_batch(self._config, {k: len(v) for k, v in self._ids.items()}, batch)
        for work in batch:
            self._book.check(work)
        wanted = self._pages.wanted([(work.conversation, len(work.ids)) for work in batch])
        if wanted > self._pages.free:
            raise RequestError(
                f"the cache is full: {wanted} pages are wanted, {self._pages.free} are free"
            )
        lengths = [self.length(work.conversation) for work in batch]
        try:
            return [self._step(work) for work in batch]
        except BaseException:
            for work, length in zip(batch, lengths, strict=True):
                self.truncate(work.conversation, length)
            raise

    def score(self, ids: Sequence[int], *, top_k: int = 0, adapter: str | None = None) -> Scores:
        """Scores ids[1:]; raises RequestError for top_k, which it does not keep."""
        check_ids(self._config, ids)
        self._book.named(adapter)
        if top_k:
            raise RequestError("the fake engine keeps no top_k")
        rows = [self._logits_of(ids[:i]) for i in range(1, len(ids))]
        return Scores(
            logprobs=np.array(
                [log_softmax_at(r, ids[i + 1]) for i, r in enumerate(rows)], dtype=np.float32
            ),
            argmax=np.array([r.argmax() for r in rows], dtype=np.int32),
        )

    def unembed(self, hidden: FloatArray) -> FloatArray:
        """Raises RequestError: there are no layers whose states could be read."""
        raise RequestError(f"the fake engine has no insides, {len(hidden)} rows were given")

    def _known(self, conversation: int) -> int:
        if conversation not in self._ids:
            raise RequestError(f"conversation {conversation} is not open")
        return conversation

    def _step(self, work: SeqWork) -> StepOut:
        self.steps += 1
        held = self._ids[work.conversation]
        start = len(held) + 1
        held.extend(work.ids)
        self._pages.take(work.conversation, len(work.ids))
        self._book.bound[work.conversation] = work.adapter
        first = start if Want.ALL_LOGITS in work.want else max(start, len(held) - work.n_drafted)
        rows = [self._logits_of(held[:end]) for end in range(first, len(held) + 1)]
        drawn = self._draw(work, rows) if Want.SAMPLE in work.want else []
        if work.n_drafted:
            kept = start - 1 + len(work.ids) - work.n_drafted + len(drawn) - 1
            self.truncate(work.conversation, kept)
        logits = rows[-1] if Want.LAST_LOGITS in work.want else None
        return StepOut(
            conversation=work.conversation,
            tokens=tuple(token for token, _ in drawn),
            logprobs=tuple(log_softmax_at(row, token) for token, row in drawn),
            logits=np.stack(rows) if Want.ALL_LOGITS in work.want else logits,
        )

    def _draw(self, work: SeqWork, rows: list[FloatArray]) -> list[tuple[int, FloatArray]]:
        """Returns what is drawn, and from which row, until a draft was not met."""
        held, drawn = self._ids[work.conversation], []
        for back in range(work.n_drafted, -1, -1):
            seen, row = held[: len(held) - back], rows[-1 - back]
            token = sample(row, work.sampling, position=len(seen), seen=seen, mask=work.mask)
            drawn.append((token, row))
            if back and token != held[-back]:
                break
        return drawn
