"""A JSONL file that grows by a line at a time and survives `kill -9`.

For: long work whose every result is dear: answers of a teacher, scores of documents.
Not for: files that are written in one go (`miudo.files.atomic_write`).
Read next: `miudo.data.asked`, `miudo.data.select`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from miudo.files import translated_disk_errors
from miudo.plain_json import read_line

__all__ = ["Ledger"]


class Ledger:
    """Appends to `path`, each line on disk before the next begins. Use it in a `with`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        with translated_disk_errors(self._path):
            self._file = self._path.open("ab")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, values: Mapping[str, Any]) -> None:
        """Writes one line, durably. Raises ResourceError when the disk is full."""
        line = json.dumps(values, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with translated_disk_errors(self._path):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """Returns the lines of `path`, having cut off a last one that is torn.

        An absent file has none. Raises DataError naming a line that is no JSON object.
        """
        if not path.exists():
            return []
        found, whole = [], 0
        with translated_disk_errors(path), path.open("r+b") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                found.append(read_line(line, f"{path}, line {number}"))
                whole += len(line)
            file.truncate(whole)
        return found
