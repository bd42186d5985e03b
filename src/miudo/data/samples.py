"""Conversations as samples of ids, packed into rows of one length without touching each other.

For: what fine-tuning trains on; the rows' marks say what counts and what lies together.
Not for: running text (`miudo.data.packed`), or reading files (`miudo.data.chats`).
Read next: `miudo.text.answers`, then `miudo.train.stepper.MarkedTokens`.

Shapes: T length of a row; a row has T + 1 ids, the last only as target.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from miudo.config import ModelConfig
from miudo.data.chats import Conversation
from miudo.errors import DataError, RequestError
from miudo.philox import Orders
from miudo.protocol import Message
from miudo.text.answers import Sample, answer_sample
from miudo.text.chat import ChatTemplate
from miudo.text.tokenizer import TextTokenizer

__all__ = ["PackedSamples", "SampleReport", "make_samples", "pack_samples"]

_IdArray = npt.NDArray[np.int32]
_MarkArrays = tuple[npt.NDArray[np.bool_], npt.NDArray[np.int32]]


@dataclass(slots=True)
class SampleReport:
    """What became of the conversations. `parted` were longer than a row and cut at turns.

    `dropped` names exchanges that alone are longer than a row; `ids` counts all, `counted` those
    that are learned.
    """

    conversations: int = 0
    samples: int = 0
    parted: int = 0
    ids: int = 0
    counted: int = 0
    dropped: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Returns one line for people."""
        line = (
            f"{self.conversations:,} conversations, {self.samples:,} samples, {self.ids:,} tokens, "
            f"{self.counted:,} of them answers"
        )
        if self.parted:
            line += f"; {self.parted:,} were longer than a row and cut between turns"
        if self.dropped:
            line += f"; {len(self.dropped):,} exchanges did not fit a row and were left out: "
            line += ", ".join(self.dropped[:3]) + (", ..." if len(self.dropped) > 3 else "")
        return line


def make_samples(
    conversations: Iterable[Conversation],
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    config: ModelConfig,
    length: int,
) -> tuple[list[Sample], SampleReport]:
    """Returns the conversations as samples of at most `length` + 1 ids, and what became of them.

    A longer one becomes several, cut before a user's turn, each with the system message and as
    many exchanges as fit: every answer is learned once, a later part without what went before.
    An exchange that alone is too long is left out and named in the report, be it the only one.
    Raises DataError naming the record for what the template refuses.
    """
    report = SampleReport()
    samples: list[Sample] = []
    for conversation in conversations:
        report.conversations += 1
        try:
            made = list(_parts(conversation, tokenizer, template, config, length, report))
        except RequestError as error:
            raise DataError(error.what, where=conversation.where, remedy=error.remedy) from error
        report.parted += len(made) > 1
        samples += made
    report.samples = len(samples)
    report.ids = sum(len(sample.ids) for sample in samples)
    report.counted = sum(sum(sample.counted) for sample in samples)
    return samples, report


def pack_samples(samples: Sequence[Sample], length: int, pad_id: int) -> PackedSamples:
    """Returns the samples in rows: each into the fullest row that has room, longest first.

    Best-fit decreasing, as Ding et al. (2024) pack documents without cutting them.
    """
    order = sorted(range(len(samples)), key=lambda i: (-len(samples[i].ids), i))
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (ids that still fit, row), sorted
    for i in order:
        size = len(samples[i].ids)
        at = bisect_left(room, (size, -1))
        if at == len(room):
            rows.append([i])
            insort(room, (length + 1 - size, len(rows) - 1))
        else:
            left, row = room.pop(at)
            rows[row].append(i)
            insort(room, (left - size, row))
    return PackedSamples(samples, rows, length, pad_id)


class PackedSamples:
    """Rows of whole samples; implements `miudo.train.stepper.MarkedTokens`."""

    def __init__(
        self,
        samples: Sequence[Sample],
        rows: Sequence[Sequence[int]],
        length: int,
        pad_id: int,
    ) -> None:
        self._samples, self._rows, self._length, self._pad = samples, rows, length, pad_id
        self._orders = Orders()
        digest = hashlib.sha256(f"{length} {pad_id}".encode())
        for row in rows:
            for i in row:
                digest.update(np.array(samples[i].ids, "<i4").tobytes())
                digest.update(np.array(samples[i].counted, bool).tobytes() + b"|")
            digest.update(b"\n")
        self.sha256 = digest.hexdigest()

    @property
    def filled(self) -> float:
        """The share of the rows that is not padding."""
        ids = sum(len(self._samples[i].ids) for row in self._rows for i in row)
        return ids / (len(self._rows) * (self._length + 1))

    def epoch_rows(self, length: int) -> int:
        """Returns `n_blocks`: an epoch is one pass."""
        return self.n_blocks(length)

    def n_blocks(self, length: int) -> int:
        """Returns how many rows there are. Raises DataError for another length than packed."""
        if length != self._length:
            raise DataError(f"was packed into rows of {self._length}, not {length}")
        return len(self._rows)

    def block(self, index: int, length: int) -> _IdArray:
        """Returns the ids of a row, int32 [T + 1]."""
        return self._row(index, length)[0]

    def block_marks(self, index: int, length: int) -> _MarkArrays:
        """Returns counted bool [T] and segments int32 [T] of a row."""
        return self._row(index, length)[1]

    def batch(self, seed: int, step: int, batch_size: int, length: int) -> _IdArray:
        """Returns int32 [batch_size, T + 1]: rows in a new order each epoch."""
        return np.stack([self.block(i, length) for i in self._places(seed, step, batch_size)])

    def batch_marks(self, seed: int, step: int, batch_size: int, length: int) -> _MarkArrays:
        """Returns the marks of the same batch, [batch_size, T] each."""
        marks = [self.block_marks(i, length) for i in self._places(seed, step, batch_size)]
        counted, segments = zip(*marks, strict=True)
        return np.stack(counted), np.stack(segments)

    def _places(self, seed: int, step: int, batch_size: int) -> Iterator[int]:
        n = len(self._rows)
        for place in range(step * batch_size, (step + 1) * batch_size):
            epoch, index = divmod(place, n)
            yield int(self._orders.of(seed, epoch, n)[index])

    def _row(self, index: int, length: int) -> tuple[_IdArray, _MarkArrays]:
        if not 0 <= index < self.n_blocks(length):
            raise DataError(f"has {len(self._rows)} rows, not number {index}")
        ids = np.full(length + 1, self._pad, np.int32)
        learned = np.zeros(length + 1, bool)
        segments = np.zeros(length + 1, np.int32)  # 0: nothing lies here
        at = 0
        for number, i in enumerate(self._rows[index], 1):
            sample = self._samples[i]
            end = at + len(sample.ids)
            ids[at:end], learned[at:end], segments[at:end] = sample.ids, sample.counted, number
            learned[at] = False  # nothing of its own goes before a sample's first id
            at = end
        return ids, (learned[1:], segments[:-1])


def _parts(
    conversation: Conversation,
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    config: ModelConfig,
    length: int,
    report: SampleReport,
) -> Iterator[Sample]:
    def sample(exchanges: Sequence[tuple[Message, Message]]) -> Sample:
        messages = [*system, *(message for pair in exchanges for message in pair)]
        return answer_sample(tokenizer, template, messages, config)

    messages = conversation.messages
    whole = answer_sample(tokenizer, template, messages, config)
    if len(whole.ids) <= length + 1:
        yield whole
        return
    system = messages[:1] if messages[0].role == "system" else ()
    turns = messages[len(system) :]
    exchanges = list(zip(turns[::2], turns[1::2], strict=True))
    held: Sample | None = None
    first = 0
    for i in range(len(exchanges)):
        longer = sample(exchanges[first : i + 1])
        if len(longer.ids) <= length + 1:
            held = longer
            continue
        if held is not None:
            yield held
        first, held = i, sample(exchanges[i : i + 1])
        if len(held.ids) > length + 1:
            at = len(system) + 2 * i + 1
            report.dropped.append(f"{conversation.where}, messages[{at}] ({len(held.ids)} tokens)")
            first, held = i + 1, None
    if held is not None:
        yield held
