"""Texts to measure a model on.

For: files, folders and globs, and the held-out part of a data folder.
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


def read_texts(inputs: Sequence[str | Path], *, max_bytes: int | None = None) -> Iterator[str]:
    """Yields the documents of files, folders and globs; of a data folder the held-out part.

    At most `max_bytes` of UTF-8 in all, so that the last document may be cut. Raises what
    `read_documents` and `PackedTokens.open` raise.
    """
    left = max_bytes
    for text in _texts(inputs):
        if left is None:
            yield text
            continue
        content = text.encode()
        yield content[:left].decode(errors="ignore")
        left -= len(content)
        if left <= 0:
            return


def _texts(inputs: Sequence[str | Path]) -> Iterator[str]:
    for item in inputs:
        if (Path(item) / MANIFEST_FILE).is_file():
            yield from _held_out(DataSet.open(Path(item)))
        else:
            yield from (document.text for document in read_documents([item]))


def _held_out(data: DataSet) -> Iterator[str]:
    """Yields what lies between end tokens; a chat's turns are texts of their own."""
    tokens, tokenizer = data.open_split("held_out"), data.tokenizer()
    if tokens.n_tokens < 2:
        raise DataError("nothing was held out", where=data.folder, remedy="Name a text instead")
    ids = tokens.block(0, tokens.n_tokens - 1)
    for piece in np.split(ids, np.flatnonzero(ids == data.end_id) + 1):
        text = tokenizer.decode([i for i in piece.tolist() if i != data.end_id])
        if text:
            yield text
