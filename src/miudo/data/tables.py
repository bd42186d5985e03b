"""Columns of a CSV file and one of a Parquet file as texts.

For: `miudo.data.sources`, `miudo.evaluate.tasks`.
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

__all__ = ["read_csv", "read_parquet", "read_rows"]

_FIELD_CHARS = 64 << 20


def read_csv(lines: Iterator[Line], path: Path, column: str, delimiter: str) -> Iterator[str]:
    """Yields the texts of `column`; see `read_rows`."""
    return (row[0] for row in read_rows(lines, path, (column,), delimiter))


def read_rows(
    lines: Iterator[Line], path: Path, columns: Sequence[str], delimiter: str
) -> Iterator[tuple[str, ...]]:
    """Yields the texts of `columns`, row by row; the first row of the file holds the names.

    Raises DataError naming the line for a missing column, a short row or broken quotes.
    """
    # The csv module keeps this limit for the whole process; its default of 128 kB is less
    # than a long document.
    csv.field_size_limit(max(_FIELD_CHARS, csv.field_size_limit()))
    rows = csv.reader((line.text for line in lines), delimiter=delimiter, strict=True)
    try:
        names = next(rows, None)
        if names is None:
            return
        for column in columns:
            if column not in names:
                raise DataError(
                    f"has no column {column!r}", where=path, remedy=f"Choose one of {names[:20]}"
                )
        places = [names.index(column) for column in columns]
        for row in rows:
            if not row:
                continue
            if len(row) <= max(places):
                column = columns[places.index(max(places))]
                raise DataError(
                    f"has {len(row)} columns, {column!r} is number {max(places) + 1}",
                    where=f"{path}, line {rows.line_num}",
                )
            yield tuple(row[at] for at in places)
    except csv.Error as error:
        raise DataError(f"not CSV ({error})", where=f"{path}, line {rows.line_num}") from error


def read_parquet(path: Path, column: str) -> Iterator[str]:
    """Yields the texts of `column`, a row group at a time.

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
            if column not in names:
                raise DataError(
                    f"has no column {column!r}", where=path, remedy=f"Choose one of {names[:20]}"
                )
            kind = file.schema_arrow.field(column).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(f"column {column!r} holds {kind}, not text", where=path)
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                for value in batch.column(0).to_pylist():
                    if value is None:
                        raise DataError(f"row {row} of {column!r} is null", where=path)
                    yield value
                    row += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"is no whole Parquet file ({error})", where=path) from error
