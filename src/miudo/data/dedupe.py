"""Documents that are there already, word for word or nearly, are dropped and reported.

For: exact duplicates by SHA-256, near ones by MinHash (Broder 1997) in LSH bands (`datasketch`).
Not for: passages repeated inside documents.
Read next: `miudo.data.pack`.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from miudo.data.sources import Document
from miudo.errors import ConfigError, MissingError

__all__ = ["DedupeReport", "DedupeSettings", "Dropped", "drop_duplicates"]

_PERMUTATIONS = 64
_MOST_NEAR = 0.95  # of so many hashes no two bands can be made for more


@dataclass(frozen=True, slots=True)
class DedupeSettings:
    """`near` is the least Jaccard similarity of word `shingle`s that counts, None for exact only.

    The similarity is estimated from 64 hashes: its standard error is at most 0.063.
    """

    near: float | None = 0.8
    shingle: int = 5

    def __post_init__(self) -> None:
        if self.near is not None and not 0.3 <= self.near <= _MOST_NEAR:
            raise ConfigError(f"near is {self.near}, allowed 0.3 to {_MOST_NEAR}, or none")
        if not 1 <= self.shingle <= 50:
            raise ConfigError(f"shingle is {self.shingle}, allowed 1 to 50")


@dataclass(frozen=True, slots=True)
class Dropped:
    """A document that was dropped, the earlier one that it repeats, their similarity."""

    source: str
    index: int
    kept_source: str
    kept_index: int
    similarity: float


@dataclass(slots=True)
class DedupeReport:
    """What was dropped and how many documents were seen."""

    documents: int = 0
    exact: list[Dropped] = field(default_factory=list)
    near: list[Dropped] = field(default_factory=list)


def drop_duplicates(
    documents: Iterable[Document], report: DedupeReport, settings: DedupeSettings | None = None
) -> Iterator[Document]:
    """Yields the first of each group of equal or near-equal documents, noting the rest.

    Holds 32 bytes a document, and about 2 kB more with `near`. Raises MissingError where
    `near` is asked for and datasketch is not installed.
    """
    settings = settings or DedupeSettings()
    seen: dict[bytes, tuple[str, int]] = {}
    index = None if settings.near is None else _NearIndex(settings.near, settings.shingle)
    for document in documents:
        report.documents += 1
        name = (document.source, document.index)
        digest = hashlib.sha256(document.text.encode()).digest()
        if (first := seen.setdefault(digest, name)) != name:
            report.exact.append(Dropped(*name, *first, 1.0))
        elif index is not None and (found := index.find_or_add(document.text, name)):
            report.near.append(found)
        else:
            yield document


class _NearIndex:
    def __init__(self, threshold: float, shingle: int) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise MissingError(
                "finding near duplicates needs datasketch", remedy="pip install 'miudo[make]'"
            ) from error
        self._min_hash = MinHash
        self._lsh = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
        self._known: dict[tuple[str, int], Any] = {}
        self._threshold = threshold
        self._shingle = shingle

    def find_or_add(self, text: str, name: tuple[str, int]) -> Dropped | None:
        words = text.lower().split()
        n = self._shingle
        shingles = {" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}
        # crc32 stands in for datasketch's sha1: ten times faster, and 32 bits are all it uses.
        hashed = self._min_hash(num_perm=_PERMUTATIONS, hashfunc=zlib.crc32)
        hashed.update_batch([s.encode() for s in shingles])
        best: tuple[float, tuple[str, int]] | None = None
        for candidate in self._lsh.query(hashed):
            similarity = hashed.jaccard(self._known[candidate])
            if similarity >= self._threshold and (best is None or similarity > best[0]):
                best = (similarity, candidate)
        if best is not None:
            return Dropped(*name, *best[1], float(best[0]))
        self._lsh.insert(name, hashed, check_duplication=False)
        self._known[name] = hashed
        return None
