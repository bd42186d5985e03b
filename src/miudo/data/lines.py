"""Lines of a file that may be compressed, each with its number and offset, in bounded memory.

For: turning bytes into text with errors that name file, line and byte.
Not for: what the lines mean (`miudo.data.sources`) or cleaning them (`miudo.data.clean`).
Read next: `miudo.data.sources`.
"""

from __future__ import annotations

import gzip
import lzma
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from miudo.errors import DataError
from miudo.files import open_regular

__all__ = ["STDIN", "Line", "decoded", "open_source", "read_lines"]

STDIN = Path("-")
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Line:
    """A line with its end; `number` counts from 1, `offset` in (decompressed) bytes from 0."""

    number: int
    offset: int
    text: str


@contextmanager
def open_source(path: Path) -> Iterator[IO[bytes]]:
    """Yields a seekable binary stream of `path`, decompressed by content (gzip, xz).

    Raises MissingError or DataError; a compressed file that is cut off or damaged raises
    DataError when the damage is reached.
    """
    file = _spooled_stdin() if path == STDIN else open_regular(path, DataError)
    with file:
        magic = file.read(6)
        file.seek(0)
        if magic[:2] == b"\x1f\x8b":
            stream = cast("IO[bytes]", gzip.GzipFile(fileobj=file))
        elif magic == b"\xfd7zXZ\x00":
            stream = cast("IO[bytes]", lzma.LZMAFile(file))  # noqa: SIM115 - closed with `file`
        else:
            stream = file
        try:
            yield stream
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            raise DataError(
                f"is cut off or damaged near byte {file.tell()} ({error})",
                where=path,
                remedy="Fetch or compress it again",
            ) from error


def read_lines(
    stream: IO[bytes], path: Path, *, line_bytes: int, errors: str = "strict"
) -> Iterator[Line]:
    """Yields the lines of `stream`; `errors` is "strict" or "replace" (U+FFFD for bad bytes).

    A UTF-8 byte order mark at the start is dropped. Raises DataError naming line and byte for
    NUL, UTF-16, bytes that are no UTF-8 (strict) and lines longer than `line_bytes`.
    """
    offset = 0
    number = 1
    while raw := stream.readline(line_bytes + 1):
        if len(raw) > line_bytes:
            raise DataError(
                f"a line is longer than {line_bytes} bytes",
                where=f"{path}, line {number}, byte {offset}",
                remedy="Break the text into lines or raise line_bytes",
            )
        if number == 1:
            if raw[:2] in _UTF16:
                raise DataError("is UTF-16", where=path, remedy="Convert it to UTF-8")
            if raw.startswith(_BOM):
                raw = raw.removeprefix(_BOM)
                offset = len(_BOM)
        yield Line(number, offset, decoded(raw, path, number, offset, errors))
        offset += len(raw)
        number += 1


def decoded(raw: bytes, path: Path, number: int, offset: int, errors: str) -> str:
    """Returns `raw` as text. Raises DataError naming the first byte that cannot be."""
    if (at := raw.find(b"\0")) >= 0:
        raise DataError(
            "holds a NUL byte: this is no text",
            where=f"{path}, line {number}, byte {offset + at}",
            remedy="Name a text, JSONL, CSV or Parquet file",
        )
    try:
        return raw.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte 0x{raw[error.start]:02x} is not UTF-8",
            where=f"{path}, line {number}, byte {offset + error.start}",
            remedy='Convert the file to UTF-8, or read it with errors="replace"',
        ) from error


def _spooled_stdin() -> IO[bytes]:
    """Copies standard input to a temporary file: reading needs two passes."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    while piece := sys.stdin.buffer.read(1 << 20):
        file.write(piece)
    file.seek(0)
    return file
