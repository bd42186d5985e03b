"""String arrays of GGUF files, as long as a vocabulary, without a loop over their items.

For: 300,000 tokens and merges, which are most of what opening a model reads.
Not for: single strings and other values (`miudo.formats.gguf_reader`).

A string is eight bytes of length, then its bytes. Of a short one, seven of the eight are zero:
wherever a byte is followed by seven zeros a string may begin, and where each such place is
exactly one string behind the last, these are the strings. The rest is walked through.
Read next: `miudo.formats.gguf_reader`.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

__all__ = ["decode_strings", "find_strings"]

_Bytes = npt.NDArray[np.uint8]
_Offsets = npt.NDArray[np.int64]

_PREFIX = 8
_WINDOW = 1 << 18
_STEPS = 16
_LENGTH = struct.Struct("<Q").unpack_from


def find_strings(data: _Bytes, offset: int, count: int) -> _Offsets | None:
    """Returns where the `count` strings from `offset` on begin, and where the last ends.

    Offsets are of the lengths that stand before the strings: `count + 1` numbers. None if a
    string runs past the end of `data`.
    """
    parts: list[_Offsets] = []
    steps = _STEPS
    while count > 0:
        found = _short_strings(data[offset : offset + _WINDOW], count)
        if len(found) < _STEPS:  # looking was dearer than walking: do less of it
            found = _walk(data, offset, min(count, steps)) - offset
            steps *= 2
        if found[-1] > len(data) - offset:
            return None
        parts.append(found[:-1] + offset)
        offset += int(found[-1])
        count -= len(found) - 1
    return np.concatenate([*parts, np.array([offset], np.int64)])


def _short_strings(window: _Bytes, count: int) -> _Offsets:
    """Beginnings of up to `count` strings shorter than 256 bytes, and the end of the last.

    Only those that follow each other from the window's first byte on.
    """
    if len(window) < _PREFIX:
        return np.zeros(1, np.int64)
    zero = window == 0
    run = zero[:-1] & zero[1:]  # two zeros, then four, then seven from the next byte on
    run = run[:-2] & run[2:]
    run = run[1:-3] & run[4:]
    starts = np.flatnonzero(run)[: count + 1]
    if not starts.size or starts[0] != 0:
        return np.zeros(1, np.int64)
    ends = starts + _PREFIX + window[starts]
    wrong = np.flatnonzero(starts[1:] != ends[:-1])
    n = min(int(wrong[0]) + 1 if wrong.size else len(starts), count)
    if n == len(starts) and ends[n - 1] > len(window):
        n -= 1  # the window cuts it
    return np.append(starts[:n], ends[n - 1] if n else 0)


def _walk(data: _Bytes, offset: int, count: int) -> _Offsets:
    memory, end, found = data.data, len(data), [offset]
    for _ in range(count):
        if offset + _PREFIX > end:
            return np.array([*found, end + 1], np.int64)
        offset = min(offset + _PREFIX + _LENGTH(memory, offset)[0], end + 1)
        found.append(offset)
    return np.array(found, np.int64)


def decode_strings(data: _Bytes, offsets: _Offsets) -> list[str]:
    """Returns the strings that lie at `offsets`, as `find_strings` returns them.

    Raises UnicodeDecodeError for one that is not UTF-8, whose `object` is that string.
    """
    if len(offsets) == 1:
        return []
    begin, end = int(offsets[0]), int(offsets[-1])
    # Each length becomes one zero byte, at which the whole text is cut.
    kept = np.ones(end - begin, np.bool_)
    lengths = offsets[:-1] - begin
    for i in range(1, _PREFIX):
        kept[lengths + i] = False
    region = data[begin:end].copy()
    region[lengths] = 0
    try:
        found = str(region[kept].data, "utf-8").split("\0")
    except UnicodeDecodeError:
        found = []
    if len(found) == len(offsets):
        return found[1:]
    memory = data.data  # a string holds a zero, or is not UTF-8: one by one
    return [
        bytes(memory[a + _PREFIX : b]).decode()
        for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ]
