"""Where two tokenizers have read the same bytes, and which of their tokens are the same.

For: a teacher whose tokenizer is not the student's: the student's ids become text, the text the
teacher's ids, and places are found at which both predict what follows the very same bytes.
Not for: what is compared there (`miudo.compress.distill.cross`).
Read next: `miudo.compress.distill.cross`.

A span lies between two such places: one token or more on either side, equal in bytes. Special
tokens that both have under one name, or are both the end of a document, are spans of their own.

Shapes: T + 1 ids of a row, m places of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from miudo.errors import ConfigError, DataError
from miudo.text.tokenizer import TextTokenizer

__all__ = ["AlignedRow", "Aligner", "common_places"]

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AlignedRow:
    """The teacher's ids of a row, and `places` [m, 2], rising: (i, j) where both are equally far.

    The student's first i tokens and the teacher's first j stand for the same bytes.
    """

    teacher_ids: list[int]
    places: _Ints


@dataclass(frozen=True, slots=True)
class _Piece:
    """A special token (`text` None), or text between two, and where the student's tokens end.

    Ends count bytes; the first `head` of them are of a character that the row cuts. What is not
    `sound` is no UTF-8.
    """

    text: str | None
    ends: list[int]
    head: int = 0
    sound: bool = True
    special: int = -1


class Aligner:
    """Aligns rows of `student` ids with `teacher` ids.

    `end_ids` pairs the tokens that end a document. `shared` [n, 2] are the ids of both that stand
    for the same bytes. Raises ConfigError where nothing is shared at all.
    """

    def __init__(
        self, student: TextTokenizer, teacher: TextTokenizer, end_ids: tuple[int, int] | None = None
    ) -> None:
        self._teacher = teacher
        self._bytes = [student.token_bytes(i) for i in range(student.vocab_size)]
        named = teacher.special_ids
        self._special: dict[int, int | None] = {
            number: named.get(name) for name, number in student.special_ids.items()
        }
        if end_ids is not None:
            self._special[end_ids[0]] = end_ids[1]
        pairs = _shared(student, teacher)
        taken = set[int]()
        ends = () if end_ids is None else (end_ids,)
        for i, j in (*ends, *self._special.items()):
            if j is not None and j not in taken and i not in pairs:
                pairs[i] = j
                taken.add(j)
        if not pairs:
            raise ConfigError("teacher and student have no token in common")
        self.shared: _Ints = np.array(sorted(pairs.items()), dtype=np.int64)

    def rows(self, ids: npt.NDArray[np.int32]) -> list[AlignedRow]:
        """Returns the alignment of each row of ids [B, T + 1].

        Where the bytes of a row are no UTF-8 the places inside that piece are left out. Raises
        DataError for a special token that the teacher has no counterpart of.
        """
        pieces = [list(self._pieces(row)) for row in ids.tolist()]
        texts = [piece.text for row in pieces for piece in row if piece.text is not None]
        encoded = iter(self._teacher.encode_batch(texts))
        return [self._aligned(row, encoded) for row in pieces]

    def _pieces(self, row: Sequence[int]) -> Iterator[_Piece]:
        held: list[bytes] = []
        first = True
        for number in row:
            if number not in self._special:
                held.append(self._bytes[number] if number < len(self._bytes) else b"")
                continue
            if held:
                yield _piece(held, first=first, last=False)
            held, first = [], False
            special = self._special[number]
            if special is None:
                raise DataError(
                    f"the teacher has no token like the student's special {number}",
                    remedy="Leave it out of the text, or choose another teacher",
                )
            yield _Piece(None, [0], special=special)
        if held:
            yield _piece(held, first=first, last=True)

    def _aligned(self, pieces: Sequence[_Piece], encoded: Iterator[list[int]]) -> AlignedRow:
        ids: list[int] = []
        places = [(0, 0)]
        done = 0
        for piece in pieces:
            i, j = done, len(ids)
            done += len(piece.ends)
            if piece.text is None:
                ids.append(piece.special)
                places.append((done, len(ids)))
                continue
            fresh = next(encoded)
            ids += fresh
            ends = self._ends(fresh, piece.text) if piece.sound else []
            found = common_places(piece.ends, [piece.head + end for end in ends])
            places += [(i + a, j + b) for a, b in found]
        return AlignedRow(ids, np.array(places, dtype=np.int64))

    def _ends(self, ids: Sequence[int], text: str) -> list[int]:
        """Where the teacher's tokens end in `text`, in bytes; none if they spell another text."""
        parts = [self._teacher.token_bytes(i) for i in ids]
        whole, wanted = b"".join(parts), text.encode()
        before = len(whole) - len(wanted) if self._teacher.adds_space else 0
        if before not in (0, 1) or whole[before:] != wanted:  # a normaliser changed it
            return []
        return [end - before for end in accumulate(map(len, parts))]


def common_places(
    student_ends: Sequence[int], teacher_ends: Sequence[int]
) -> list[tuple[int, int]]:
    """Returns the pairs (i, j), rising, for which i and j tokens end at the same byte.

    The ends are those of tokens in turn; tokens of no bytes go with what is before them.
    """
    common = np.intersect1d(student_ends, teacher_ends)
    i = np.searchsorted(student_ends, common, side="right")
    j = np.searchsorted(teacher_ends, common, side="right")
    return list(zip(i.tolist(), j.tolist(), strict=True))


def _piece(parts: Sequence[bytes], *, first: bool, last: bool) -> _Piece:
    """Text of tokens' bytes. A row may begin and end inside a character, a document may not."""
    raw = b"".join(parts)
    ends = list(accumulate(map(len, parts)))
    head = 0
    while first and head < min(3, len(raw)) and raw[head] & 0xC0 == 0x80:
        head += 1
    stop = len(raw) - (_cut_off(raw) if last else 0)
    try:
        return _Piece(raw[head:stop].decode(), ends, head)
    except UnicodeDecodeError:
        return _Piece(raw[head:stop].decode("utf-8", "replace"), ends, sound=False)


def _cut_off(raw: bytes) -> int:
    """How many bytes at the end of `raw` begin a character that is not finished."""
    for back in range(1, min(4, len(raw) + 1)):
        byte = raw[-back]
        if byte & 0xC0 == 0x80:  # goes on with one
            continue
        wanted = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return back if wanted > back else 0
    return 0


def _shared(student: TextTokenizer, teacher: TextTokenizer) -> dict[int, int]:
    mine, theirs = _by_bytes(student), _by_bytes(teacher)
    return {number: theirs[text] for text, number in mine.items() if text in theirs}


def _by_bytes(tokenizer: TextTokenizer) -> Mapping[bytes, int]:
    """Ids by what they stand for; of two, the one that is no stand-in for a single byte."""
    found: dict[bytes, int] = {}
    for number in range(tokenizer.vocab_size):
        raw = tokenizer.token_bytes(number)
        held = found.get(raw)
        if raw and (held is None or tokenizer.tokens[held].startswith("<0x")):
            found[raw] = number
    return found
