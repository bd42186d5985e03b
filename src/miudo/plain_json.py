"""JSON of our own files and of data: objects, and errors of whoever reads them.

For: records, manifests and states, a line of data each; what is no object is told with its place.
Not for: model files and requests, which may be hostile (`miudo.strict_json`).
Read next: `miudo.records`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from miudo.errors import DataError, MiudoError
from miudo.files import atomic_write, open_regular
from miudo.limits import LIMITS

__all__ = ["read_json", "read_line", "write_json"]


def read_line(
    text: str | bytes,
    where: object,
    error: type[MiudoError] = DataError,
    *,
    remedy: str | None = None,
) -> dict[str, Any]:
    """Returns the object in `text`. Raises `error` for anything else, `where` naming the text."""
    try:
        # An end of line would have what is missing before it told as of the next line.
        values = json.loads(text.rstrip())
    except (ValueError, RecursionError) as cause:
        raise error(f"not JSON ({_told(cause)})", where=where, remedy=remedy) from cause
    if not isinstance(values, dict):
        raise error(f"is a JSON {type(values).__name__}, not an object", where=where, remedy=remedy)
    return values


def read_json(
    path: Path, error: type[MiudoError] = DataError, *, remedy: str | None = None
) -> dict[str, Any]:
    """Returns the object in the file. Raises `error` for anything else, MissingError if absent."""
    with open_regular(path, error) as file:
        text = file.read(LIMITS.json_bytes)
    return read_line(text, path, error, remedy=remedy)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented UTF-8 JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def _told(cause: Exception) -> str:
    if not isinstance(cause, json.JSONDecodeError):
        return str(cause)
    line = f"line {cause.lineno}, " if cause.lineno > 1 else ""
    return f"{cause.msg}, {line}character {cause.colno}"
