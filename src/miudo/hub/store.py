"""Models that were imported: copies under a name, each with the hashes and where it came from.

For: `miudo import`, for models from a stick, a colleague, or a run that is to be kept.
Not for: what came from the hub, which stays in the hub's cache (`miudo.hub.cache`).
Read next: `miudo.hub.resolve`.

    HOME/models/NAME/TAG/     a model's folder, or one GGUF file and its record
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from miudo.errors import MissingError, ModelFileError, ResourceError, UsageError
from miudo.files import atomic_folder, resolve_under, sha256_file
from miudo.formats import open_model
from miudo.hub.folders import home_folder
from miudo.hub.needed import CONFIG_FILE, folder_files
from miudo.names import StoreRef
from miudo.records import RECORD_FILE, Artefact, Record

__all__ = [
    "StoredModel",
    "import_model",
    "remove_stored",
    "stored_models",
    "stored_path",
]


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model of the store: its folder, or the GGUF file in it."""

    reference: StoreRef
    path: Path
    record: Record | None

    @property
    def size_bytes(self) -> int:
        """Bytes of its files."""
        return sum(p.stat().st_size for p in _folder(self.reference).iterdir() if p.is_file())


def stored_path(reference: StoreRef) -> Path | None:
    """Returns the folder or GGUF file of a stored model, None where there is none."""
    folder = _folder(reference)
    if (folder / CONFIG_FILE).is_file():
        return folder
    return next(iter(sorted(folder.glob("*.gguf"))), None)


def stored_models() -> Iterator[StoredModel]:
    """Yields every model of the store by name and tag."""
    for folder in sorted((home_folder() / "models").glob("[!.]*/[!.]*")):
        reference = StoreRef(folder.parent.name, folder.name)
        if path := stored_path(reference):
            yield StoredModel(reference, path, _record(folder))


def import_model(path: Path, reference: StoreRef, *, licence: str | None = None) -> StoredModel:
    """Copies the model at `path` into the store as `reference`; only the files that it needs.

    Those of another model of the store are linked, not copied. It must open, and be what its
    record says where it has one. Raises UsageError for a name that
    is taken, ResourceError for a full disk, and what `open_model` raises. The copy is there whole
    or not at all.
    """
    target = _folder(reference)
    if target.exists():
        raise UsageError(
            "is there already",
            where=str(reference),
            remedy=f"Give another name, or delete it: miudo rm {reference}",
        )
    model = open_model(path)
    source = path if path.is_dir() else path.parent
    names = _files(path)
    _check_room(sum((source / name).stat().st_size for name in names))
    origin = _origin(path, model.record)
    known = {} if origin is None else dict(origin.outputs)
    with atomic_folder(target) as folder:
        outputs = {name: _copied(source, name, folder, known.get(name)) for name in names}
        record = Record(
            verb="import",
            name=reference.name,
            settings={"tag": reference.tag},
            inputs=tuple(Artefact("file", name, sha256) for name, sha256 in outputs.items()),
            outputs=outputs,
            parents=() if origin is None else (origin,),
            licence=licence or (None if origin is None else origin.licence),
        )
        record.write(folder)
    stored = stored_path(reference)
    return StoredModel(reference, target if stored is None else stored, record)


def remove_stored(reference: StoreRef) -> int:
    """Deletes a model of the store; returns its bytes. Raises MissingError if it is not there."""
    found = next((m for m in stored_models() if m.reference == reference), None)
    if found is None:
        raise MissingError("is not in the store", where=str(reference), remedy="See `miudo list`")
    size, folder = found.size_bytes, _folder(reference)
    shutil.rmtree(folder)
    if not any(folder.parent.iterdir()):
        folder.parent.rmdir()
    return size


def _folder(reference: StoreRef) -> Path:
    return home_folder() / "models" / reference.name / reference.tag


def _record(folder: Path) -> Record | None:
    try:
        return Record.read(folder)
    except ModelFileError:
        return None


def _origin(path: Path, inside: Record | None) -> Record | None:
    """Returns how a model came to be: the record beside a GGUF file, if it names it, knows more."""
    beside = None if path.is_dir() else _record(path.parent)
    return beside if beside is not None and path.name in beside.outputs else inside


def _files(path: Path) -> tuple[str, ...]:
    if not path.is_dir():
        return (path.name,)
    return tuple(name for name in folder_files(path) if name != RECORD_FILE)


def _copied(source: Path, name: str, folder: Path, wanted: str | None) -> str:
    original = resolve_under(source, name)
    if original.is_relative_to((home_folder() / "models").resolve()):
        os.link(original, folder / name)  # files of the store are replaced, never changed
    else:
        shutil.copyfile(original, folder / name)
    sha256 = sha256_file(folder / name)
    if wanted not in (None, sha256):
        raise ModelFileError(
            "is not the file of the record: another hash",
            where=source / name,
            remedy="It was changed or damaged on its way; copy it again",
        )
    return sha256


def _check_room(size: int) -> None:
    folder = next(p for p in (home_folder(), *home_folder().parents) if p.is_dir())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ResourceError(
            f"{size / 1e6:,.0f} MB are to come, {free / 1e6:,.0f} MB are free",
            where=home_folder(),
            remedy="Free some space, or choose another folder with MIUDO_HOME",
        )
