"""Whether evaluation samples stand in the training text already.

For: a warning beside a score, from n-grams of words, in memory bounded by the samples.
Not for: proof of the contrary: a paraphrase or a translation is not found.
Read next: `miudo.evaluate.harness`, `miudo.evaluate.texts`.

The rule is that of Brown et al. (2020), appendix C: words in lower case without punctuation,
n-grams of 13 words, and of 8, their least, for samples that are shorter. Here a sample counts as
overlapping with one n-gram of it found in one training document. A sample of fewer than 8 words
cannot be checked, and is counted apart. The text of a sample is its question and right answer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
import numpy.typing as npt

__all__ = ["Overlap", "find_overlap", "overlap_share"]

_LONG, _SHORT = 13, 8
_WORD = re.compile(r"[^\W_]+")
_BATCH_WORDS = 1 << 18
# Any odd number with mixed bits: what an n-gram's hash multiplies the words before by.
_FACTOR = 0x9E3779B97F4A7C15

_Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Of `checked` samples `found` overlap; `unchecked` have fewer than 8 words."""

    found: int
    checked: int
    unchecked: int
    share: float


def find_overlap(samples: Sequence[str], training: Iterable[str]) -> list[bool | None]:
    """Returns for each sample whether it overlaps with `training`, None if it is too short.

    Holds the hashes of the samples' n-grams, and one training document at a time. Hashes have
    64 bits: with a million n-grams of samples and ten thousand million of training text, the
    chance of one false find is about one in two thousand.
    """
    own = [_own_hashes(text) for text in samples]
    lists: dict[int, _Hashes] = {}
    for n in (_LONG, _SHORT):
        parts = [hashes for length, hashes in own if length == n]
        if parts:
            lists[n] = np.unique(np.concatenate(parts))
    seen = {n: np.zeros(len(known), dtype=np.bool_) for n, known in lists.items()}
    for text in training if lists else ():
        for words in _word_hashes(text):
            for n, known in lists.items():
                grams = _gram_hashes(words, n)
                places = np.minimum(np.searchsorted(known, grams), len(known) - 1)
                seen[n][places[known[places] == grams]] = True
    return [
        None if n == 0 else bool(seen[n][np.searchsorted(lists[n], hashes)].any())
        for n, hashes in own
    ]


def overlap_share(found: Iterable[bool | None]) -> Overlap:
    """Returns the counts of what `find_overlap` gave."""
    answers = list(found)
    checked = [answer for answer in answers if answer is not None]
    hits = sum(checked)
    share = hits / len(checked) if checked else 0.0
    return Overlap(hits, len(checked), len(answers) - len(checked), share)


def _own_hashes(text: str) -> tuple[int, _Hashes]:
    """Returns (n, hashes of the n-grams) of a sample; n is 0 where it is too short."""
    words = np.array([_word_hash(word) for word in _words(text)], dtype=np.uint64)
    n = _LONG if len(words) >= _LONG else _SHORT if len(words) >= _SHORT else 0
    return n, _gram_hashes(words, n) if n else words[:0]


def _word_hashes(text: str) -> Iterator[_Hashes]:
    """Yields the hashes of a text's words in batches that repeat the 12 words before them."""
    words = _words(text)
    last = np.zeros(0, dtype=np.uint64)
    while batch := [_word_hash(word) for word in islice(words, _BATCH_WORDS)]:
        hashes = np.concatenate([last, np.array(batch, dtype=np.uint64)])
        yield hashes
        last = hashes[-(_LONG - 1) :]


def _words(text: str) -> Iterator[str]:
    return (match.group() for match in _WORD.finditer(text.lower()))


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _gram_hashes(words: _Hashes, n: int) -> _Hashes:
    """Returns a hash of each run of n words: their polynomial in `_FACTOR`, modulo 2**64."""
    count = len(words) - n + 1
    if count < 1:
        return words[:0]
    factor = np.uint64(_FACTOR)
    hashes = words[:count].copy()
    for i in range(1, n):
        hashes = hashes * factor + words[i : i + count]
    return hashes
