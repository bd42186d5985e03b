"""Finding a benchmark's files and reading their records, field by checked field.

For: JSON Lines, JSON lists and CSV, plain or as gz or xz, in subfolders too.
Not for: what the fields mean (each task's own file) or plain text (`miudo.evaluate.texts`).
Read next: `miudo.data.lines`.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.data.lines import decoded, open_source, read_lines
from miudo.data.tables import read_csv
from miudo.errors import DataError, MissingError
from miudo.evaluate.tasks.task import Sample, Source, TaskData
from miudo.limits import LIMITS
from miudo.plain_json import read_line

__all__ = ["Record", "bare_name", "find_task_files", "read_records", "read_split", "without_ending"]

_SUFFIXES = (".jsonl", ".json", ".csv")
_LINE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file; `where` names both, and every getter's error the field as well."""

    values: Mapping[str, Any]
    where: str

    def text(self, field: str, *, empty: bool = False) -> str:
        """Returns a field that must be text, and not empty unless allowed."""
        value = self.values.get(field)
        if not isinstance(value, str) or not (empty or value.strip()):
            raise self.refused(field, value, "text")
        return self._encodable(field, value)

    def optional(self, field: str) -> str:
        """Returns a field that may be absent, null or blank, which is the empty text."""
        value = self.values.get(field)
        if value is None or (isinstance(value, str) and not value.strip()):
            return ""
        return self.text(field)

    def name(self, number: str) -> str:
        """Returns the record's `id`, a text or a whole number; `number` where it has none."""
        value = self.values.get("id")
        return str(value) if type(value) is int else self.optional("id") or number

    def texts(self, field: str) -> tuple[str, ...]:
        """Returns a field that must be a list of at least two texts, none of them empty."""
        value = self.values.get(field)
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) < 2:
            raise self.refused(field, value, "a list of at least two texts")
        for text in value:
            if not isinstance(text, str) or not text.strip():
                raise self.refused(field, value, "a list of texts, none of them empty")
        return tuple(self._encodable(field, text) for text in value)

    def refused(self, field: str, value: object, allowed: str) -> DataError:
        """Returns the error for a field whose value is not `allowed`."""
        found = f"{field!r} is {value!r:.80}" if field in self.values else f"has no {field!r}"
        return DataError(found, where=self.where, remedy=f"Give {allowed}, or leave the record out")

    def _encodable(self, field: str, value: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.refused(field, value, "valid Unicode") from error
        return value


def read_split(
    source: Source,
    stem: str,
    fields: Sequence[str],
    sample: Callable[[Record, str], Sample],
    order: Sequence[str] = ("test", "validation", "val", "dev", "train", ""),
) -> TaskData:
    """Returns the data of a benchmark whose files are called `stem` and a split's name.

    The first split of `order` that is there is scored. Examples come from train, else from dev,
    else from the same files. `sample` makes a sample of a record and a name for it.
    """
    scored = find_task_files(stem, source.paths, [f"{stem}_{s}*" if s else stem for s in order])
    shown = scored
    for split in ("train", "dev"):
        found = _matching(source.paths, f"{stem}_{split}*")
        if found and not set(found) & set(scored):
            shown = found
            break

    def read(paths: Sequence[Path]) -> list[Sample]:
        return [
            sample(record, f"{name}/{number}")
            for path, name in zip(paths, map(bare_name, paths), strict=True)
            for number, record in enumerate(read_records(path, fields), start=1)
        ]

    samples = read(scored)
    pool = samples if shown is scored else read(shown)
    return TaskData(samples, pool, files=tuple(map(str, dict.fromkeys((*scored, *shown)))))


def find_task_files(task: str, paths: Sequence[Path], patterns: Sequence[str]) -> list[Path]:
    """Returns the files of the first pattern that matches any, sorted by name.

    A pattern is held against a file's name without its endings; one with a slash, against the
    folder's name too. Raises MissingError saying what was looked for, and where.
    """
    for pattern in patterns:
        if found := _matching(paths, pattern):
            return found
    names = ", ".join(patterns)
    raise MissingError(
        f"the task {task} found no file called {names} (endings {', '.join(_SUFFIXES)}, "
        "also .xz and .gz)",
        where=", ".join(map(str, paths)) or "--task-data",
        remedy="Name the folder that holds it with --task-data",
    )


def bare_name(path: Path) -> str:
    """Returns a file's name without `.jsonl`, `.json` or `.csv`, and `.gz` or `.xz`."""
    return without_ending(path.name)


def without_ending(name: str) -> str:
    """Returns `name` without the endings that a task's file may have."""
    bare = name.removesuffix(".gz").removesuffix(".xz")
    kind = next((suffix for suffix in _SUFFIXES if bare.endswith(suffix)), None)
    return name if kind is None else bare.removesuffix(kind)


def read_records(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    """Yields the records of a file; of a CSV file, `columns` alone.

    Raises DataError naming file and record (lines in JSON Lines, from 1) for what is no
    record, and for a file without any.
    """
    empty = True
    with open_source(path) as stream:
        kind = Path(path.name.removesuffix(".gz").removesuffix(".xz")).suffix
        if kind == ".json":
            records = _json_list(stream.read(LIMITS.json_bytes + 1), path)
        else:
            lines = read_lines(stream, path, line_bytes=_LINE_BYTES)
            if kind == ".csv":
                rows = (row for _, row in read_csv(lines, path, columns, ","))
                records = (
                    Record(dict(zip(columns, row, strict=True)), f"{path}, record {number}")
                    for number, row in enumerate(rows, start=1)
                )
            else:
                records = (
                    _json_record(line.text, f"{path}, line {line.number}")
                    for line in lines
                    if not line.text.isspace()
                )
        for record in records:
            empty = False
            yield record
    if empty:
        raise DataError("holds no record", where=path, remedy="Leave it out or fill it")


def _matching(paths: Sequence[Path], pattern: str) -> list[Path]:
    """Returns matching files by name; two of one name are an error, lest records count twice."""
    found: dict[str, Path] = {}
    depth = 1 + pattern.count("/")
    for path in _files(paths):
        folders = path.absolute().parts[-depth:-1]
        name = "/".join((*folders, bare_name(path)))
        if not fnmatch.fnmatchcase(name.lower(), pattern.lower()):
            continue
        other = found.setdefault(name, path)
        if other.resolve() != path.resolve():
            raise DataError(
                f"two files are called {name}: {other} and {path}",
                remedy="Name one of them with --task-data",
            )
    return [found[name] for name in sorted(found)]


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for given in paths:
        if not given.exists():
            raise MissingError("no such file or folder", where=given, remedy="Check --task-data")
        for path in sorted(given.rglob("*")) if given.is_dir() else [given]:
            hidden = path != given and any(
                part.startswith(".") for part in path.relative_to(given).parts
            )
            name = path.name.removesuffix(".gz").removesuffix(".xz")
            if path.is_file() and not hidden and Path(name).suffix in _SUFFIXES:
                yield path


def _json_list(data: bytes, path: Path) -> Iterator[Record]:
    if len(data) > LIMITS.json_bytes:
        raise DataError(
            f"is longer than {LIMITS.json_bytes} bytes", where=path, remedy="Give JSON Lines"
        )
    values = _parsed(decoded(data.removeprefix(b"\xef\xbb\xbf"), path, 1, 0, "strict"), str(path))
    if not isinstance(values, list):
        raise DataError("is no JSON list", where=path, remedy="Give a list of objects")
    for number, value in enumerate(values, start=1):
        yield _record(value, f"{path}, record {number}")


def _json_record(text: str, where: str) -> Record:
    return Record(read_line(text, where), where)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error})", where=where) from error


def _record(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"is a JSON {type(value).__name__}, not an object", where=where)
    return Record(value, where)
