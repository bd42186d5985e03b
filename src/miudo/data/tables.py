"""Columns of a CSV or Parquet file as texts.

For: `miudo.data.sources`, `miudo.evaluate.tasks`, questions with answers (`miudo.data.chats`).
Not for: JSONL, which is lines.
Read next: `miudo.data.sources`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from miudo.data.lines import Line
from miudo.errors import DataError, MissingError
from miudo.files import open_regular

__all__ = ["read_csv", "read_parquet"]

_FIELD_CHARS = 64 << 20


def read_csv(
    lines: Iterator[Line], path: Path, columns: Sequence[str], delimiter: str
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yields the line that a row ends on, and its texts of `columns`.

    The first row holds the names. Raises DataError naming the line for a missing column, a
    short row or broken quotes.
    """
    # The csv module keeps this limit for the whole process; its default of 128 kB is less
    # than a long document.
    csv.field_size_limit(max(_FIELD_CHARS, csv.field_size_limit()))
    rows = csv.reader((line.text for line in lines), delimiter=delimiter, strict=True)
    try:
        names = next(rows, None)
        if names is None:
            return
        _need(columns, names, path)
        places = [names.index(column) for column in columns]
        for row in rows:
            if not row:
                continue
            for at, column in zip(places, columns, strict=True):
                if len(row) <= at:
                    raise DataError(
                        f"has {len(row)} columns, {column!r} is number {at + 1}",
                        where=f"{path}, line {rows.line_num}",
                    )
            yield rows.line_num, tuple(row[at] for at in places)
    except csv.Error as error:
        raise DataError(f"not CSV ({error})", where=f"{path}, line {rows.line_num}") from error


def read_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yields the texts of `columns` row by row, read a row group at a time.

    Raises DataError for damaged files, an absent column, values that are no text; MissingError
    where pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingError(
            "Parquet needs pyarrow", where=path, remedy="pip install 'miudo[make]'"
        ) from error
    with open_regular(path, DataError) as stream:
        try:
            file = pq.ParquetFile(stream)
            names = file.schema_arrow.names
            _need(columns, names, path)
            for column in columns:
                kind = file.schema_arrow.field(column).type
                if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                    raise DataError(f"column {column!r} holds {kind}, not text", where=path)
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=list(columns)):
                for values in zip(*(batch.column(c).to_pylist() for c in columns), strict=True):
                    for column, value in zip(columns, values, strict=True):
                        if value is None:
                            raise DataError(f"row {row} of {column!r} is null", where=path)
                    yield values
                    row += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"is no whole Parquet file ({error})", where=path) from error


def _need(columns: Sequence[str], names: Sequence[str], path: Path) -> None:
    for column in columns:
        if column not in names:
            raise DataError(
                f"has no column {column!r}",
                where=path,
                remedy=f"Choose one of {list(names)[:20]} by --set: chat.prompt, chat.answer, "
                "prepare.read.field, labels.text_field, labels.label_field",
            )
