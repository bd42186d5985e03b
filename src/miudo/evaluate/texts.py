"""Texts to measure a model on.

For: files, folders and globs, and what a data folder held out, each of its sources by itself.
Not for: training batches (`miudo.data.packed`).
Read next: `miudo.data.sources`, `miudo.evaluate.perplexity`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from miudo.data.mixture import Part
from miudo.data.packed import MANIFEST_FILE, DataSet, PackedTokens
from miudo.data.sources import read_documents
from miudo.errors import DataError, UsageError

__all__ = ["read_domains", "read_texts"]

_PIECE = 1 << 20  # ids


def read_texts(inputs: Sequence[str | Path], *, max_bytes: int | None = None) -> Iterator[str]:
    """Yields the documents of files, folders and globs; of a data folder those held out.

    At most `max_bytes` of UTF-8 of each input, and of each part of a data folder, so that a last
    document may be cut. Raises what `read_documents` and `PackedTokens.open` raise.
    """
    for item in inputs:
        for _, texts in _domains(item, "held_out"):
            yield from _cut(texts, max_bytes)


def read_domains(
    inputs: Sequence[str], *, max_bytes: int | None = None, split: str = "held_out"
) -> dict[tuple[str, ...], Iterator[str]]:
    """Returns the documents of each input by its name, (input,), as `read_texts` yields them.

    A data folder made of several sources has those of each by (input, source) instead; a source
    of which nothing is in `split` is left out. The first document of each is read at once: what
    is absent or no text is told before any work. Raises UsageError for an input named twice.
    """
    for item in inputs:
        if inputs.count(item) > 1:
            raise UsageError("is named twice", where=item, remedy="Name each input once")
    found: dict[tuple[str, ...], Iterator[str]] = {}
    for item in inputs:
        for name, texts in _domains(item, split):
            rest = _cut(texts, max_bytes)
            first = next(rest, None)
            if first is not None:
                found[(item, *name)] = chain([first], rest)
    return found


def _domains(item: str | Path, split: str) -> Iterator[tuple[tuple[str, ...], Iterator[str]]]:
    """Yields an input's texts under no name, or those of each part of a mixture under its own."""
    if (Path(item) / MANIFEST_FILE).is_file():
        yield from _parts(DataSet.open(Path(item)), split)
    else:
        yield (), (document.text for document in read_documents([item]))


def _parts(data: DataSet, split: str) -> Iterator[tuple[tuple[str, ...], Iterator[str]]]:
    tokens = data.open_split(split)
    if tokens.n_tokens < 2:
        what = "nothing was held out" if split == "held_out" else f"its part {split!r} is empty"
        raise DataError(what, where=data.folder, remedy="Name a text instead")
    parts = data.parts(split)
    if len({part.name for part in parts}) < len(parts):
        raise DataError("two of its sources have one name", where=data.folder)
    for part in parts:
        yield (part.name,) if len(parts) > 1 else (), _packed(data, tokens, part)


def _packed(data: DataSet, tokens: PackedTokens, part: Part) -> Iterator[str]:
    """Yields what lies between end tokens; a chat's turns are texts of their own."""
    tokenizer = data.tokenizer()
    rest = np.zeros(0, dtype=np.int32)
    end = part.start + part.tokens
    for begin in range(part.start, end, _PIECE):
        ids = np.concatenate([rest, tokens.ids(begin, min(begin + _PIECE, end))])
        *whole, rest = np.split(ids, np.flatnonzero(ids == data.end_id) + 1)
        if begin + _PIECE >= end:
            whole.append(rest)
        for piece in whole:
            text = tokenizer.decode([i for i in piece.tolist() if i != data.end_id])
            if text:
                yield text


def _cut(texts: Iterator[str], max_bytes: int | None) -> Iterator[str]:
    if max_bytes is None:
        yield from texts
        return
    left = max_bytes
    for text in texts:
        content = text.encode()
        yield content[:left].decode(errors="ignore")
        left -= len(content)
        if left <= 0:
            break
