"""Samples as the trainer sees them, for a person to look at before a run.

For: `miudo finetune --preview`: the template's tokens, and what of them is learned.
Not for: training (`miudo.train.finetune`).
Read next: `miudo.text.answers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from miudo.data.chats import read_chats
from miudo.errors import UsageError
from miudo.text.answers import Sample
from miudo.text.tokenizer import TextTokenizer
from miudo.train.artefact import open_decoder
from miudo.train.lesson import FinetuneJob, chat_samples, learns_chats

__all__ = ["Shown", "preview"]


@dataclass(frozen=True, slots=True)
class Shown:
    """One sample: runs of text, and whether they are learned; none of what fits no row.

    `typed` are special tokens that somebody wrote into the conversation: they look like the
    template's in `spans`, and are plain text.
    """

    where: str
    tokens: int
    learned: int
    spans: tuple[tuple[str, bool], ...]
    typed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        spans = [{"text": text, "learned": learned} for text, learned in self.spans]
        counts = {"tokens": self.tokens, "learned": self.learned}
        return {"where": self.where, **counts, "spans": spans, "typed": list(self.typed)}


def preview(job: FinetuneJob, count: int) -> list[Shown]:
    """Returns the samples of the first `count` conversations, special tokens spelled out.

    An exchange that is longer than a row is there by name, without text.
    Raises UsageError for running text, all of which is learned, and what reading raises.
    """
    if not learns_chats(job):
        raise UsageError(
            "is running text: all of it is learned",
            where=job.inputs[0],
            remedy="Give conversations, or leave out --preview",
        )
    base = open_decoder(job.model, "model")
    tokenizer = base.tokenizer()
    shown = []
    for conversation in islice(read_chats(job.inputs, job.chat), count):
        samples, report = chat_samples(job, base, [conversation])
        said = "\n".join(message.content for message in conversation.messages)
        typed = tuple(name for name in tokenizer.special_ids if name in said)
        for sample in samples:
            spans = tuple(_spans(tokenizer, sample))
            counts = len(sample.ids), sum(sample.counted)
            shown.append(Shown(conversation.where, *counts, spans, typed))
        for where in report.dropped:
            shown.append(Shown(where, 0, 0, ()))
    return shown


def _spans(tokenizer: TextTokenizer, sample: Sample) -> Sequence[tuple[str, bool]]:
    pairs = zip(sample.ids, sample.counted, strict=True)
    return [
        (_spelled(tokenizer, [number for number, _ in run]), learned)
        for learned, run in groupby(pairs, key=lambda pair: pair[1])
    ]


def _spelled(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    special = set(tokenizer.special_ids.values())
    text = b"".join(
        tokenizer.tokens[i].encode() if i in special else tokenizer.token_bytes(i) for i in ids
    )
    return text.decode("utf-8", "replace")
