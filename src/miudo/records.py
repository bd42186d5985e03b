"""The account of how an artefact was made: `record.json` beside it, mirrored in GGUF.

For: inputs and their hashes, settings, seed, versions, measurements and parents of a thing.
Not for: searching many of them (the registry's index is rebuilt from these).
Read next: `miudo.files` for how it is written.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from miudo.errors import ModelFileError
from miudo.plain_json import read_json, write_json

__all__ = [
    "COMMAND",
    "RECORD_FILE",
    "SCHEMA",
    "Artefact",
    "Measurement",
    "Record",
    "environment",
    "is_licence",
    "shared_licence",
]

SCHEMA = 1
RECORD_FILE = "record.json"
_GENERATIONS = 100

COMMAND: ContextVar[tuple[str, ...]] = ContextVar("COMMAND", default=())
"""The command line that is being run, `miudo` first; the command line's entry sets it."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """A thing that went in: what part it played, its name, and SHA-256 of its content.

    The name is the last part of the path: records travel, and whose folder it was is private.
    """

    role: str
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number with its unit and how it was obtained; `estimate` says it was not measured."""

    name: str
    value: float
    unit: str
    method: str
    estimate: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """How one artefact came to be. `parents` are whole records: lineage travels with it.

    `outputs` maps file names beside the record to their SHA-256.
    """

    verb: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    inputs: tuple[Artefact, ...] = ()
    outputs: Mapping[str, str] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()
    parents: tuple[Record, ...] = ()
    licence: str | None = None
    notes: tuple[str, ...] = ()
    command: tuple[str, ...] = field(default_factory=COMMAND.get)
    environment: Mapping[str, str] = field(default_factory=lambda: environment())
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_json` gives back an equal record."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, where: object = None) -> Self:
        """Returns the record in `values`. Raises ModelFileError for another schema or keys."""
        if values.get("schema") != SCHEMA:
            raise ModelFileError(
                f"record schema {values.get('schema')!r}, this miudo reads {SCHEMA}",
                where=where,
                remedy="Use the miudo that wrote it, or a newer one",
            )
        _check_depth(values, where)
        try:
            given = dict(values)
            given["inputs"] = tuple(Artefact(**v) for v in given.get("inputs", ()))
            given["measurements"] = tuple(Measurement(**v) for v in given.get("measurements", ()))
            given["parents"] = tuple(
                Record.from_json(v, where=where) for v in given.get("parents", ())
            )
            given["notes"] = tuple(given.get("notes", ()))
            given["command"] = tuple(given.get("command", ()))
            record = cls(**given)
            _check_kinds(record)
            return record
        except (TypeError, AttributeError, RecursionError) as error:
            raise ModelFileError(f"not a record ({error})", where=where) from error

    def write(self, folder: Path) -> None:
        """Writes `record.json` into `folder`, atomically."""
        write_json(folder / RECORD_FILE, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Returns the record in `folder`, None where there is none."""
        path = folder / RECORD_FILE
        if not path.exists():
            return None
        return cls.from_json(read_json(path, ModelFileError), where=path)


def _check_depth(values: Mapping[str, Any], where: object) -> None:
    """Raises ModelFileError for a line of parents that is longer than any honest one."""
    level: list[Any] = [values]
    for _ in range(_GENERATIONS):
        level = [
            parent
            for record in level
            if isinstance(record, Mapping) and isinstance(record.get("parents", ()), list | tuple)
            for parent in record.get("parents", ())
        ]
        if not level:
            return
    raise ModelFileError(
        f"not a record (more than {_GENERATIONS} generations of parents)", where=where
    )


def _check_kinds(record: Record) -> None:
    """Raises TypeError for a value that what shows a record could not show."""
    kinds: list[tuple[str, object, type]] = [
        ("verb", record.verb, str),
        ("name", record.name, str),
        ("created", record.created, str),
        ("settings", record.settings, dict),
        ("outputs", record.outputs, dict),
        ("environment", record.environment, dict),
    ]
    kinds += [("notes and command", text, str) for text in record.notes + record.command]
    for part in record.inputs:
        kinds += [("inputs", value, str) for value in (part.role, part.name, part.sha256)]
    for number in record.measurements:
        kinds += [("measurements", value, str) for value in (number.name, number.unit)]
        kinds.append(("measurements", number.value, float))
    for name, value, kind in kinds:
        if not isinstance(value, kind) and not (kind is float and type(value) is int):
            raise TypeError(f"{name} holds {str(value)[:50]!r}, not a {kind.__name__}")


def shared_licence(records: Iterable[Record | None]) -> str | None:
    """Returns the licence that all `records` state, None where they differ or one has none."""
    stated = {None if record is None else record.licence for record in records}
    return stated.pop() if len(stated) == 1 else None


def is_licence(text: str) -> bool:
    """Whether `text` has the form of an SPDX expression; identifiers are not looked up."""
    flat = re.sub(r"[()]", " ", text)
    term = r"[A-Za-z0-9][A-Za-z0-9.+-]*"
    joined = rf"{term}(?:\s+(?:AND|OR|WITH)\s+{term})*"
    return text.count("(") == text.count(")") and re.fullmatch(joined, flat.strip()) is not None


def environment() -> dict[str, str]:
    """Returns versions of what computes, and the machine: what a number depends on."""
    from importlib import metadata  # slow to import, and opening a model imports this file

    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
    }
    for package in ("miudo", "numpy", "torch", "tokenizers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
