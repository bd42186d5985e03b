"""The Hugging Face hub's cache on this machine: finding, listing, linking and removing models.

For: models that `miudo pull` or any other program that uses the cache has fetched.
Not for: asking the hub (`miudo.hub.remote`), or models that were imported (`miudo.hub.store`).
Read next: `miudo.hub.pull`.

    CACHE/models--ORG--NAME/blobs/DIGEST            the bytes
                            snapshots/COMMIT/FILE   a link to them
                            refs/main               the commit of a branch or tag
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from miudo.errors import MissingError, ModelFileError
from miudo.files import atomic_write
from miudo.hub.needed import folder_files
from miudo.names import HubRef, is_plain_file_name
from miudo.records import RECORD_FILE, Record

__all__ = [
    "CachedModel",
    "cache_folder",
    "cached_models",
    "cached_path",
    "link_blob",
    "model_files",
    "pull_record",
    "remove_cached",
    "repository_folder",
    "snapshot_folder",
    "write_ref",
]

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model in the cache: a snapshot's folder or one GGUF file in it, and all its files.

    `record` is ours of fetching it, None where another program did.
    """

    reference: HubRef
    commit: str
    path: Path
    files: tuple[Path, ...]
    record: Record | None

    @property
    def size_bytes(self) -> int:
        """Bytes of its files."""
        return sum(file.stat().st_size for file in self.files)


def cache_folder() -> Path:
    """Returns where the cache is: `HF_HUB_CACHE`, `HF_HOME` and the like decide."""
    return Path(constants.HF_HUB_CACHE)


def repository_folder(reference: HubRef) -> Path:
    """Returns the folder of a repository in the cache, there or not."""
    name = f"models--{reference.organisation}--{reference.repository}"
    return cache_folder() / name


def snapshot_folder(reference: HubRef, commit: str) -> Path:
    """Returns the folder of a repository's files at `commit`, there or not."""
    return repository_folder(reference) / "snapshots" / commit


def cached_path(reference: HubRef) -> Path | None:
    """Returns the folder or GGUF file that is here, whole; None where something is wanting."""
    commit = _commit_of(reference)
    if commit is None:
        return None
    path = snapshot_folder(reference, commit)
    if reference.file is not None:
        return path / reference.file if (path / reference.file).is_file() else None
    return path if model_files(path) else None


def model_files(folder: Path) -> tuple[Path, ...]:
    """Returns the files that a model in `folder` is made of, () where one is wanting."""
    try:
        paths = tuple(folder / name for name in folder_files(folder))
    except (OSError, MissingError, ModelFileError):
        return ()
    return paths if all(path.is_file() for path in paths) else ()


def pull_record(path: Path) -> Record | None:
    """Returns the record of fetching the folder or GGUF file at `path`, None without one."""
    try:
        record = Record.read(path if path.is_dir() else path.parent)
    except ModelFileError:
        return None
    if record is None or record.verb != "pull":
        return None
    return record if path.is_dir() or path.name in record.outputs else None


def cached_models() -> Iterator[CachedModel]:
    """Yields every whole model in the cache, folders and GGUF files, whoever fetched it."""
    for folder in sorted(cache_folder().glob("models--*--*/snapshots/*")):
        _, organisation, repository = folder.parent.parent.name.split("--", 2)
        if not (_COMMIT.fullmatch(folder.name) and is_plain_file_name(repository)):
            continue
        revision = _revision_of(folder)
        if files := model_files(folder):
            reference = HubRef(organisation, repository, None, revision)
            yield CachedModel(reference, folder.name, folder, files, pull_record(folder))
        for path in sorted(folder.rglob("*.gguf")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and is_plain_file_name(name):
                reference = HubRef(organisation, repository, name, revision)
                yield CachedModel(reference, folder.name, path, (path,), pull_record(path))


def link_blob(blob: Path, pointer: Path) -> None:
    """Makes `pointer`, a path in a snapshot, a link to `blob`, replacing one that is there.

    A hard link where `HF_HUB_DISABLE_SYMLINKS` is set.
    """
    pointer.parent.mkdir(parents=True, exist_ok=True)
    temporary = pointer.with_name(f".{pointer.name}.{secrets.token_hex(4)}.tmp")
    if constants.HF_HUB_DISABLE_SYMLINKS:
        temporary.hardlink_to(blob)
    else:
        temporary.symlink_to(os.path.relpath(blob, pointer.parent))
    temporary.replace(pointer)


def write_ref(reference: HubRef, commit: str) -> None:
    """Notes that the reference's branch or tag is `commit`, as other programs look it up."""
    path = repository_folder(reference) / "refs" / reference.revision
    if reference.revision != commit and _commit_of(reference) != commit:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda file: file.write(commit.encode()))


def remove_cached(model: CachedModel) -> int:
    """Deletes `model` from the cache; returns the bytes that this freed.

    What other snapshots, models or programs use as well stays. A snapshot that then holds
    nothing more goes whole.
    """
    snapshot = snapshot_folder(model.reference, model.commit)
    there = {path for path in snapshot.rglob("*") if not path.is_dir()}
    if {p for p in there if p.name != RECORD_FILE} <= {*model.files}:
        return _remove_snapshot(snapshot)
    kept = {f for m in cached_models() if m.path != model.path for f in m.files}
    return sum(_remove_file(file) for file in model.files if file not in kept)


def _remove_snapshot(snapshot: Path) -> int:
    from huggingface_hub import scan_cache_dir

    found = scan_cache_dir(cache_folder())
    # A copy of a repository has the same commits, and is not meant.
    repository = snapshot.parent.parent.resolve()
    ours = frozenset(repo for repo in found.repos if repo.repo_path.resolve() == repository)
    plan = dataclasses.replace(found, repos=ours).delete_revisions(snapshot.name)
    plan.execute()
    return plan.expected_freed_size


def _remove_file(pointer: Path) -> int:
    blob, size = pointer.resolve(), pointer.stat().st_size
    pointer.unlink()
    repository = next(p for p in pointer.parents if p.name == "snapshots").parent
    if not blob.is_relative_to(repository.resolve()):
        return 0  # of the cache as a whole, where other repositories may use it
    if any(path.resolve() == blob for path in (repository / "snapshots").rglob("*")):
        return 0
    blob.unlink(missing_ok=True)
    return size


def _commit_of(reference: HubRef) -> str | None:
    if _COMMIT.fullmatch(reference.revision):
        return reference.revision
    try:
        text = (repository_folder(reference) / "refs" / reference.revision).read_text("ascii")
    except (OSError, ValueError):
        return None
    return text.strip() if _COMMIT.fullmatch(text.strip()) else None


def _revision_of(snapshot: Path) -> str:
    """Returns a branch or tag that is this snapshot's commit, `main` first; else the commit."""
    refs = snapshot.parent.parent / "refs"
    names = [p.relative_to(refs).as_posix() for p in sorted(refs.rglob("*")) if p.is_file()]
    for name in sorted(names, key=lambda name: name != "main"):
        if is_plain_file_name(name) and (refs / name).read_text("ascii").strip() == snapshot.name:
            return name
    return snapshot.name
