"""JSON from untrusted files: bounded in size and depth, no duplicate keys, no NaN.

For: headers, config files, tokenizers and requests, where a second value for a key hides an
attack or a mistake. Whoever reads another kind of thing than a model file gives the error its name.
Not for: our own records, which `json` reads.
Read next: `miudo.formats.safetensors`.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

from miudo.errors import ModelFileError
from miudo.files import open_regular
from miudo.limits import LIMITS

__all__ = ["parse_object", "read_object"]


def parse_object(
    text: bytes,
    where: object,
    *,
    max_values: int | None = None,
    deepest: int | None = LIMITS.json_depth,
) -> dict[str, Any]:
    """Returns the JSON object in `text`. Raises ModelFileError naming `where`.

    `max_values` bounds how many values it holds before any is made: `[[],[],...]` takes thirty
    times its size. Commas inside texts count as well. `deepest` None: as deep as Python reads,
    for readers that look no deeper than they know, and files whose values are a million.
    """
    if max_values is not None and sum(map(text.count, (b",", b"[", b"{"))) > max_values:
        raise ModelFileError(f"more than {max_values} values", where=where)
    try:
        value = json.loads(
            text.decode(),  # left to itself, json takes UTF-16 and UTF-32 as well
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_whole,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"not valid JSON ({error})", where=where) from error
    if deepest is not None and _deeper(value, deepest):
        raise ModelFileError(f"nested deeper than {deepest}", where=where)
    if not isinstance(value, dict):
        raise ModelFileError("not a JSON object", where=where)
    return value


def read_object(path: Path, max_bytes: int = LIMITS.config_bytes) -> dict[str, Any]:
    """Returns the JSON object in the file at `path`. Raises ModelFileError, MissingError."""
    with open_regular(path) as file:
        text = file.read(max_bytes + 1)
    if len(text) > max_bytes:
        raise ModelFileError(f"larger than {max_bytes} bytes", where=path)
    return parse_object(text, path, max_values=LIMITS.json_values)


def _deeper(value: Any, limit: int) -> bool:
    """Whether objects and lists lie more than `limit` deep in each other."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        inner = itertools.chain.from_iterable(
            outer.values() if isinstance(outer, dict) else outer for outer in level
        )
        level = [value for value in inner if isinstance(value, dict | list)]
    return bool(level)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:100]!r} stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is no finite number")
    return value


def _whole(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError("a number of more than 40 digits")
    return int(digits)
