"""Texts to measure a model on.

For: files, folders and globs, and a part of a data folder, by default the held-out one.
Not for: training batches (`miudo.data.packed`).
Read next: `miudo.data.sources`, `miudo.evaluate.perplexity`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from miudo.data.packed import MANIFEST_FILE, DataSet
from miudo.data.sources import read_documents
from miudo.errors import DataError

__all__ = ["read_texts"]

_PIECE = 1 << 20  # ids


def read_texts(
    inputs: Sequence[str | Path], *, max_bytes: int | None = None, split: str = "held_out"
) -> Iterator[str]:
    """Yields the documents of files, folders and globs; of a data folder those of `split`.

    At most `max_bytes` of UTF-8 of each input, so that its last document may be cut. Raises what
    `read_documents` and `PackedTokens.open` raise.
    """
    for item in inputs:
        left = max_bytes
        for text in _texts(item, split):
            if left is None:
                yield text
                continue
            content = text.encode()
            yield content[:left].decode(errors="ignore")
            left -= len(content)
            if left <= 0:
                break


def _texts(item: str | Path, split: str) -> Iterator[str]:
    if (Path(item) / MANIFEST_FILE).is_file():
        yield from _packed(DataSet.open(Path(item)), split)
    else:
        yield from (document.text for document in read_documents([item]))


def _packed(data: DataSet, split: str) -> Iterator[str]:
    """Yields what lies between end tokens; a chat's turns are texts of their own."""
    tokens, tokenizer = data.open_split(split), data.tokenizer()
    if tokens.n_tokens < 2:
        what = "nothing was held out" if split == "held_out" else f"its part {split!r} is empty"
        raise DataError(what, where=data.folder, remedy="Name a text instead")
    rest = np.zeros(0, dtype=np.int32)
    for begin in range(0, tokens.n_tokens, _PIECE):
        ids = np.concatenate([rest, tokens.ids(begin, begin + _PIECE)])
        *whole, rest = np.split(ids, np.flatnonzero(ids == data.end_id) + 1)
        if begin + _PIECE >= tokens.n_tokens:
            whole.append(rest)
        for piece in whole:
            text = tokenizer.decode([i for i in piece.tolist() if i != data.end_id])
            if text:
                yield text
