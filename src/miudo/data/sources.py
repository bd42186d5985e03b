"""Files, folders, globs and standard input become documents.

For: txt, WikiText `.tokens`, JSONL (text or messages), CSV, TSV, Parquet, each also as gz or xz.
Not for: cleaning (`miudo.data.clean`), duplicates (`miudo.data.dedupe`).
Read next: `miudo.data.lines` for bytes and their errors, `miudo.data.tables` for CSV, Parquet.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.data.lines import STDIN, Line, open_source, read_lines
from miudo.data.tables import read_csv, read_parquet
from miudo.errors import ConfigError, DataError, MissingError, RequestError
from miudo.plain_json import read_line
from miudo.protocol import Message
from miudo.text.chat import parse_messages

__all__ = [
    "RECORD_SUFFIX",
    "Document",
    "ReadSettings",
    "encodable",
    "file_kind",
    "find_files",
    "read_documents",
]

RECORD_SUFFIX = ".record.json"  # a source file's record stands beside it under its name plus this
_MARKER = "<|endoftext|>"
_SPLITS = ("auto", "file", "line", "blank", "marker", "heading")
_KINDS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".tokens": "wikitext",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_HEADING = re.compile(r" ?= (?!=)[^\n]*[^=\n] = ?\r?\n?")


@dataclass(frozen=True, slots=True)
class Document:
    """One text with the file it came from and its number there, from 0.

    A chat has its turns in `messages`; `text` then holds their contents, a line each.
    `part` is the number of the mixture's source that it belongs to.
    """

    text: str
    source: str
    index: int
    messages: tuple[Message, ...] = ()
    part: int = 0


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """How files become documents. Raises ConfigError for values that mean nothing.

    `split` parts plain text: at lines that are only `<|endoftext|>` ("marker"), at two or more
    blank lines ("blank"), before WikiText's ` = Title = ` ("heading"), at every line ("line"),
    nowhere ("file"); "auto" takes the first of marker and blank that a file has, else the file,
    and heading for `.tokens`.
    `field` names the JSON key, CSV column or Parquet column with the text. `kind` overrides the
    file's suffix. `errors="replace"` puts U+FFFD for bytes that are no UTF-8.
    """

    field: str = "text"
    split: str = "auto"
    errors: str = "strict"
    kind: str = "auto"
    line_bytes: int = 64 << 20
    document_bytes: int = 512 << 20

    def __post_init__(self) -> None:
        kinds = ("auto", *dict.fromkeys(_KINDS.values()))
        for name, allowed in (
            ("split", _SPLITS),
            ("errors", ("strict", "replace")),
            ("kind", kinds),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(
                    f"{name} is {value!r}", remedy=f"Choose one of {', '.join(allowed)}"
                )
        if self.line_bytes < 1 or self.document_bytes < 1:
            raise ConfigError("line_bytes and document_bytes must be at least 1")


def read_documents(
    inputs: Sequence[str | Path] | str | Path, settings: ReadSettings | None = None
) -> Iterator[Document]:
    """Yields the documents of all inputs, in order; documents of white space alone are skipped.

    Raises MissingError for absent files, DataError naming file, line and byte for text that
    cannot be read, and for a file without any text.
    """
    settings = settings or ReadSettings()
    for path in find_files(inputs):
        kind = file_kind(path) if settings.kind == "auto" else settings.kind
        empty = True
        for document in _read_file(path, kind, settings):
            if document.text.strip():
                empty = False
                yield document
        if empty:
            raise DataError("holds no text", where=path, remedy="Leave it out or fill it")


def find_files(inputs: Sequence[str | Path] | str | Path) -> list[Path]:
    """Returns the files that `inputs` name; a folder gives its text files, sorted, hidden not.

    "-" is standard input. Raises MissingError where nothing is found.
    """
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not given:
        raise DataError("no input was named", remedy='Name files, folders, globs or "-"')
    found: list[Path] = []
    for item in given:
        path = Path(item)
        if path == STDIN or path.is_file():
            found.append(path)
        elif path.is_dir():
            found += _in_folder(path)
        elif not path.exists() and glob.has_magic(str(item)):
            names = sorted(glob.glob(str(item), recursive=True))
            files = [Path(name) for name in names if Path(name).is_file()]
            if not files:
                raise MissingError("no file matches", where=item, remedy="Check the pattern")
            found += files
        else:
            found.append(path)  # opening it says what is wrong
    return found


def _in_folder(folder: Path) -> list[Path]:
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and _bare_suffix(path) in _KINDS
    ]
    if not files:
        raise MissingError(
            "has no text files", where=folder, remedy=f"Known endings: {', '.join(_KINDS)}"
        )
    return files


def _bare_suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz").removesuffix(".xz")
    return Path(name).suffix


def file_kind(path: Path) -> str:
    """Returns what a file's name says it holds: text, wikitext, jsonl, csv, tsv or parquet."""
    return _KINDS.get(_bare_suffix(path), "text")


def _read_file(path: Path, kind: str, settings: ReadSettings) -> Iterator[Document]:
    if kind == "parquet":
        for index, (text,) in enumerate(read_parquet(path, (settings.field,))):
            yield Document(text, str(path), index)
        return
    with open_source(path) as stream:
        if kind in ("text", "wikitext"):
            split = _split_of(stream, path, kind, settings)
            lines = read_lines(stream, path, line_bytes=settings.line_bytes, errors=settings.errors)
            for index, text in enumerate(_split_text(lines, path, split, settings)):
                yield Document(text, str(path), index)
            return
        lines = read_lines(stream, path, line_bytes=settings.line_bytes, errors=settings.errors)
        if kind == "jsonl":
            yield from _read_jsonl(lines, path, settings)
            return
        delimiter = "\t" if kind == "tsv" else ","
        rows = read_csv(lines, path, (settings.field,), delimiter)
        for index, (_, (text,)) in enumerate(rows):
            yield Document(text, str(path), index)


def _split_of(stream: Any, path: Path, kind: str, settings: ReadSettings) -> str:
    """Decides how text is parted: a first pass over the whole file where that is needed."""
    if settings.split != "auto":
        return settings.split
    if kind == "wikitext":
        return "heading"
    blank = found_run = 0
    split = "file"
    while raw := stream.readline(settings.line_bytes + 1):
        if raw.strip() == _MARKER.encode():
            split = "marker"
            break
        blank = 0 if raw.strip() else blank + 1
        found_run += blank == 2
    stream.seek(0)
    return "blank" if split == "file" and found_run else split


def _split_text(
    lines: Iterator[Line], path: Path, split: str, settings: ReadSettings
) -> Iterator[str]:
    held: list[str] = []
    size = blank = 0
    for line in lines:
        is_blank = line.text.isspace()
        ends = (
            (split == "marker" and line.text.strip() == _MARKER)
            or split == "line"
            or (split == "blank" and blank >= 2 and not is_blank)
            or (split == "heading" and _HEADING.fullmatch(line.text) is not None)
        )
        blank = blank + 1 if is_blank else 0
        if ends and held:
            yield "".join(held).strip("\r\n")
            held, size = [], 0
        if split == "marker" and ends:
            continue
        held.append(line.text)
        size += len(line.text)
        if size > settings.document_bytes:
            raise DataError(
                f"a document is longer than {settings.document_bytes} characters",
                where=f"{path}, line {line.number}",
                remedy=f"Part documents by a line {_MARKER}, or raise document_bytes",
            )
    if held:
        yield "".join(held).strip("\r\n")


def _read_jsonl(lines: Iterator[Line], path: Path, settings: ReadSettings) -> Iterator[Document]:
    index = 0
    for line in lines:
        if line.text.isspace():
            continue
        where = f"{path}, line {line.number}"
        yield _json_document(read_line(line.text, where), str(path), index, where, settings)
        index += 1


def _json_document(
    values: dict[str, Any], source: str, index: int, where: str, settings: ReadSettings
) -> Document:
    if isinstance(values.get(settings.field), str):
        return Document(
            encodable(values[settings.field], where, errors=settings.errors), source, index
        )
    if "messages" in values:
        try:
            messages = parse_messages(values["messages"])
        except RequestError as error:
            raise DataError(error.what, where=where, remedy=error.remedy) from error
        text = "\n".join(m.content for m in messages)
        return Document(
            encodable(text, where, errors=settings.errors), source, index, tuple(messages)
        )
    raise DataError(
        f"has no text under {settings.field!r} and no messages (found: {sorted(values)[:20]})",
        where=where,
        remedy="Name the key with the text as field",
    )


def encodable(text: str, where: str, *, errors: str = "strict") -> str:
    """Returns `text` without halves of surrogate pairs: JSON can spell one, no UTF-8 file can.

    Raises DataError for one where `errors` is "strict".
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if errors == "strict":
            raise DataError(
                f"character {error.start} is half a surrogate pair",
                where=where,
                remedy='Mend it, or read with errors="replace"',
            ) from error
        return text.encode("utf-8", "replace").decode()
    return text
