"""Last words: does the model complete a passage with a word that the passage used before?

For: any text; the idea is LAMBADA's (Paperno et al. 2016), without its choice by readers.
Not for: comparing with published LAMBADA figures: these passages are other passages.
Read next: `miudo.evaluate.texts`, `miudo.evaluate.harness`.

The rule: a document is cut into sentences after `.`, `!`, `?` or an ellipsis (with closing quotes)
before white space. Groups of `sentences` follow one another without overlap; a group is a candidate
if its last word has at least `min_letters` letters and nothing but letters, and stands earlier in
the group as a word of its own, written alike. What follows the word (the full stop) is cut off. Of
all candidates the `passages` with the lowest `hold_out(passage, seed)` are taken, once each, in
the order of the text.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator
from itertools import count

from miudo.data.pack import hold_out
from miudo.errors import DataError
from miudo.evaluate.tasks.task import LastWordSettings, Sample, Source, Task, TaskData, TaskSettings
from miudo.evaluate.texts import read_texts

__all__ = ["LAST_WORD", "passages_of"]

_QUOTES = "\"'\u201d\u2019\u00bb)\\]"  # what closes after a full stop
_SENTENCE_END = re.compile(rf"(?<=[.!?…])[{_QUOTES}]*\s+")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_LAST = re.compile(rf"(?P<before>\S)\s+(?P<word>[^\W\d_]+)[\s.!?…{_QUOTES}]*\Z")


def passages_of(text: str, settings: LastWordSettings) -> Iterator[tuple[str, str]]:
    """Yields (passage up to the last word, last word) of one document, by the rule above."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    bounds = [0, *ends, len(text)] if not ends or ends[-1] < len(text) else [0, *ends]
    for first in range(0, len(bounds) - settings.sentences, settings.sentences):
        group = text[bounds[first] : bounds[first + settings.sentences]].strip()
        last = _LAST.search(group)
        if last is None or len(last["word"]) < settings.min_letters:
            continue
        context = group[: last.end("before")]
        if last["word"] in _WORD.findall(context):
            yield context, last["word"]


def _load(source: Source, settings: TaskSettings) -> TaskData:
    inputs = source.texts or tuple(map(str, source.paths))
    chosen = _lowest(read_texts(inputs, max_bytes=source.max_bytes), settings)
    if not chosen:
        raise DataError(
            "no passage ends with a word that it used before",
            where=", ".join(inputs),
            remedy=f"Give more text, with documents of {settings.last_word.sentences} sentences",
        )
    samples = [
        Sample(f"passage/{number}", context, (word,), 0, text=f"{context} {word}")
        for number, context, word in chosen
    ]
    return TaskData(samples, files=inputs)


def _lowest(texts: Iterable[str], settings: TaskSettings) -> list[tuple[int, str, str]]:
    """Returns (number, context, word) of the passages with the lowest hashes, holding no more."""
    kept: list[tuple[float, int, str, str]] = []  # a heap, highest hash first
    held: set[float] = set()
    numbers = count()
    for text in texts:
        for context, word in passages_of(text, settings.last_word):
            rank = -hold_out(f"{context} {word}", settings.seed)
            if rank in held:  # the same passage again
                continue
            item = (rank, next(numbers), context, word)
            if len(kept) < settings.last_word.passages:
                heapq.heappush(kept, item)
            elif rank > kept[0][0]:
                held.discard(heapq.heapreplace(kept, item)[0])
            else:
                continue
            held.add(rank)
    return sorted((number, context, word) for _, number, context, word in kept)


LAST_WORD = Task("last_word", _load, metric="acc", kind="greedy", takes_texts=True)
