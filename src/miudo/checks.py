"""What an engine written in Python must refuse before it changes anything.

For: the PyTorch engine and the fake one.
Not for: the native core, which checks at its own door (`native/core/miudo.cc`).
Read next: `miudo.protocol`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from miudo.config import ModelConfig
from miudo.errors import RequestError
from miudo.protocol import SeqWork, Want

__all__ = ["check_batch", "check_ids", "check_length", "check_top_k"]


def check_batch(config: ModelConfig, lengths: Mapping[int, int], batch: Sequence[SeqWork]) -> None:
    """Raises RequestError for a batch that an engine must refuse before it changes anything.

    `lengths` maps open conversations to their positions.
    """
    taken: set[int] = set()
    for work in batch:
        if work.conversation not in lengths or work.conversation in taken:
            state = "twice in the batch" if work.conversation in taken else "not open"
            raise RequestError(f"conversation {work.conversation} is {state}")
        taken.add(work.conversation)
        check_ids(config, work.ids)
        if not 0 <= work.n_drafted < len(work.ids):
            raise RequestError(f"{work.n_drafted} of {len(work.ids)} ids are drafted")
        if work.n_drafted and work.want != Want.SAMPLE:
            raise RequestError("a draft wants more than a sample", remedy="Want.SAMPLE alone")
        end = lengths[work.conversation] + len(work.ids)
        if end > config.max_positions:
            raise RequestError(
                f"{end} positions, the model has {config.max_positions}",
                where=f"conversation {work.conversation}",
                remedy="Shorten the prompt or start a new conversation",
            )
        if work.mask is not None and work.mask.shape != (config.vocab_size,):
            raise RequestError(f"mask is {list(work.mask.shape)}, not [{config.vocab_size}]")


def check_length(length: int, held: int) -> None:
    """Raises RequestError for a length that a conversation of `held` positions has not."""
    if not 0 <= length <= held:
        raise RequestError(f"length {length}, the conversation holds {held}")


def check_ids(config: ModelConfig, ids: Sequence[int]) -> None:
    """Raises RequestError for no ids, or ids outside the vocabulary."""
    if not len(ids):
        raise RequestError("no ids to take in", remedy="Give at least one id")
    if not all(isinstance(i, int | np.integer) for i in ids):
        raise RequestError("ids are no whole numbers", remedy="Give what the tokenizer gave")
    low, high = min(ids), max(ids)
    if low < 0 or high >= config.vocab_size:
        bad = low if low < 0 else high
        raise RequestError(f"id {bad} is outside the vocabulary of {config.vocab_size}")


def check_top_k(config: ModelConfig, top_k: int) -> None:
    """Raises RequestError for a top_k below 0 or above the vocabulary."""
    if not 0 <= top_k <= config.vocab_size:
        raise RequestError(f"top_k is {top_k}, allowed 0 to {config.vocab_size}")
