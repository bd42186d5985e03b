"""A prompt as numbers: hashed words and pairs of words, and a few things that can be counted.

For: the classifier of complexity, which needs no vocabulary and no model.
Not for: the classifier itself (`miudo.route.complexity`).
Read next: `miudo.route.complexity`.

Hashing is that of Weinberger et al. 2009, without signs: with so few collisions they cost a
reader of the signals more than they bring.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["COUNTED", "Features", "bucket", "features", "grams"]

COUNTED = (
    "length", "words", "mean_word", "digits", "numbers", "question_marks", "sentences",
    "punctuation", "capitals", "beyond_ascii",
)  # fmt: skip
"""Names of what is counted, in the order of `Features.counted`."""

_MAX_CHARS = 1 << 16
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True, slots=True)
class Features:
    """`indices` are sorted, below 2**bits; `values` have length 1 together. `counted`: raw."""

    indices: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    counted: npt.NDArray[np.float64]


def features(text: str, bits: int) -> Features:
    """Returns the features of `text`, of which the first 65,536 characters are read."""
    text = text[:_MAX_CHARS]
    table: Counter[int] = Counter()
    for gram, count in grams(text).items():
        table[bucket(gram, bits)] += count
    indices = np.array(sorted(table), dtype=np.int64)
    values = np.array([1.0 + math.log(table[i]) for i in indices.tolist()], dtype=np.float64)
    norm = float(np.sqrt((values**2).sum()))
    return Features(indices, values / norm if norm else values, _counted(text))


def grams(text: str) -> Counter[str]:
    """Returns the words of `text`, lower case, numbers as "#", and its pairs of neighbours."""
    words = ["#" if word[0].isdigit() else word for word in _WORD.findall(text.lower())]
    pairs = [f"{a} {b}" for a, b in pairwise(words)]
    return Counter(words + pairs)


def bucket(gram: str, bits: int) -> int:
    """Returns where a gram is counted: the same on every machine and in every run."""
    return zlib.crc32(gram.encode("utf-8", "replace")) & ((1 << bits) - 1)


def _counted(text: str) -> npt.NDArray[np.float64]:
    words, size = text.split(), max(1, len(text))
    counts = (
        math.log1p(len(text)),
        math.log1p(len(words)),
        len(text) / max(1, len(words)),
        sum(c.isdigit() for c in text) / size,
        math.log1p(len(_NUMBER.findall(text))),
        math.log1p(text.count("?")),
        math.log1p(len(re.findall(r"[.!?]+(?:\s|$)", text))),
        sum(not c.isalnum() and not c.isspace() for c in text) / size,
        sum(c.isupper() for c in text) / size,
        sum(not c.isascii() for c in text) / size,
    )
    return np.array(counts, dtype=np.float64)
