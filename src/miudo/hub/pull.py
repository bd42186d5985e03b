"""A model from the Hugging Face hub onto this machine: what it needs, checked, with a record.

For: `miudo pull`. The revision is pinned to one commit before the first file is fetched.
Not for: running it, or anything on its own: no other verb reaches for the network.
Read next: `miudo.hub.needed`, `miudo.hub.remote`, `miudo.hub.download`, `miudo.hub.cache`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from miudo.errors import MissingError, ModelFileError, ResourceError, UsageError
from miudo.formats.hf import family_of
from miudo.formats.shards import INDEX_SUFFIX
from miudo.hub.cache import (
    cache_folder,
    cached_path,
    link_blob,
    pull_record,
    repository_folder,
    snapshot_folder,
    write_ref,
)
from miudo.hub.catalogue import load_catalogue
from miudo.hub.download import CACHE, fetch_blob
from miudo.hub.licences import Licence, licence_from_card, restriction_of
from miudo.hub.needed import CONFIG_FILE, needed_files, shards
from miudo.hub.remote import Listing, RemoteFile, file_url, list_repository, translated
from miudo.limits import LIMITS
from miudo.names import HubRef
from miudo.records import RECORD_FILE, Record
from miudo.strict_json import read_object

__all__ = ["Pulled", "pull", "pulled_offline"]


@dataclass(frozen=True, slots=True)
class Pulled:
    """Where the model lies, and its record; `fetched_bytes` is 0 where all was here already.

    `record` is None for what another program fetched.
    """

    path: Path
    record: Record | None
    fetched_bytes: int


def pull(
    reference: HubRef,
    *,
    tell: Callable[[Licence], None],
    progress: Callable[[int, int], None],
    waiting: Callable[[str], None],
) -> Pulled:
    """Fetches what the model at `reference` needs into the hub's cache.

    Calls `tell` with the licence before the first file comes, `progress` with bytes here and in
    all, `waiting` with a file that another program is fetching. Raises MissingError without
    network, model or permission, ModelFileError for wrong bytes or hostile names, ResourceError
    for a full disk. What came so far is kept for the next attempt; no snapshot is ever linked to
    half a file.
    """
    listing = list_repository(reference)
    licence = _licence(reference, listing)
    tell(licence)
    job = _Job(reference, listing, progress, waiting)
    with translated(reference):
        if reference.file is not None:
            job.fetch([_named_file(reference, listing)])
            path = job.snapshot / reference.file
        else:
            _fetch_folder(job)
            path = job.snapshot
    record = pull_record(path)
    if record is None or job.changed:
        job.link()
        folder = path if path.is_dir() else path.parent
        record = _record(reference, job, licence, folder)
        record.write(folder)
    write_ref(reference, listing.commit)  # last: until now the branch's older model is here
    return Pulled(path, record, job.fetched_bytes)


def pulled_offline(reference: HubRef) -> Pulled:
    """Returns the model if it is whole in the cache; MissingError where it is not."""
    path = cached_path(reference)
    if path is None:
        raise MissingError(
            "is not whole in the cache, and this is offline",
            where=str(reference),
            remedy="Pull it once with a network",
        )
    return Pulled(path, pull_record(path), 0)


class _Job:
    """What one call of `pull` has fetched: file names and the SHA-256 of each.

    `changed` says that some file was not here with the record of an earlier pull.
    """

    def __init__(
        self,
        reference: HubRef,
        listing: Listing,
        progress: Callable[[int, int], None],
        waiting: Callable[[str], None],
    ) -> None:
        self.reference, self.listing = reference, listing
        self._progress, self._waiting = progress, waiting
        self.repository = repository_folder(reference)
        self.snapshot = snapshot_folder(reference, listing.commit)
        self.hashes: dict[str, str] = {}
        self.fetched_bytes = 0
        self.changed = False
        self._done = self._total = 0

    def fetch(self, files: Iterable[RemoteFile]) -> None:
        """Fetches `files` one after the other, having looked whether the disk holds them all."""
        wanted = [file for file in files if file.name not in self.hashes]
        self._total += sum(file.size for file in wanted)
        self._check_disk(file for file in wanted if self._recorded(file) is None)
        for file in wanted:
            self.hashes[file.name] = self._recorded(file) or self._fetch(file)
            self._done += file.size
            self._progress(self._done, self._total)

    def link(self) -> None:
        """Makes the snapshot: a link for each file; the record is ours to write."""
        for name in self.hashes:
            if name != RECORD_FILE:
                link_blob(self.blob(self.listing.files[name]), self.snapshot / name)

    def blob(self, file: RemoteFile) -> Path:
        """Returns where the bytes of `file` lie."""
        return self.repository / "blobs" / file.digest

    def _fetch(self, file: RemoteFile) -> str:
        self.changed, was_here = True, self.blob(file).is_file()
        sha256 = fetch_blob(
            file_url(self.reference, self.listing.commit, file.name),
            file,
            self.repository,
            where=str(self.reference),
            progress=lambda here: self._progress(self._done + here, self._total),
            waiting=self._waiting,
        )
        self.fetched_bytes += 0 if was_here else file.size
        return sha256

    def _recorded(self, file: RemoteFile) -> str | None:
        """The hash that an earlier pull of this commit found, if the file is still there."""
        pointer = self.snapshot / file.name
        record = pull_record(pointer)
        if record is None or not pointer.is_file() or pointer.stat().st_size != file.size:
            return None
        return record.outputs[file.name.rpartition("/")[2]]

    def _check_disk(self, files: Iterable[RemoteFile]) -> None:
        missing = 0
        for file in files:
            blob = self.blob(file)
            part = blob.with_name(f"{blob.name}.incomplete")
            here = next((p.stat().st_size for p in (blob, part) if p.is_file()), 0)
            missing += max(0, file.size - here)
        folder = next(p for p in (cache_folder(), *cache_folder().parents) if p.is_dir())
        free = shutil.disk_usage(folder).free
        if missing > free:
            raise ResourceError(
                f"{missing / 1e6:,.0f} MB are to come, {free / 1e6:,.0f} MB are free",
                where=cache_folder(),
                remedy=f"Free some space, or choose another folder with {CACHE}",
            )


def _fetch_folder(job: _Job) -> None:
    files = job.listing.files
    small, weights = needed_files(files.keys(), str(job.reference))
    if weights.endswith(INDEX_SUFFIX):
        small = (*small, weights)
    for name in small:
        if files[name].size > LIMITS.json_bytes:
            size = f"{files[name].size:,} bytes"
            raise ModelFileError(f"{name} has {size}, no model's has", where=str(job.reference))
    job.fetch(files[name] for name in small)
    # What cannot be opened is known before its gigabytes come.
    family_of(read_object(job.blob(files[CONFIG_FILE])), f"{job.reference}: {CONFIG_FILE}")
    if not weights.endswith(INDEX_SUFFIX):
        job.fetch([files[weights]])
        return
    where = f"{job.reference}: {weights}"
    named = shards(read_object(job.blob(files[weights])), weights, files.keys(), where)
    job.fetch(files[name] for name in named)


def _named_file(reference: HubRef, listing: Listing) -> RemoteFile:
    name = str(reference.file)
    there = sorted(file for file in listing.files if file.endswith(".gguf"))
    cure = f"It has {', '.join(there[:12])}" if there else "It has no GGUF file"
    if not name.endswith(".gguf"):
        raise UsageError("names no GGUF file", where=str(reference), remedy=cure)
    if name not in listing.files:
        raise MissingError("has no such file", where=str(reference), remedy=cure)
    return listing.files[name]


def _licence(reference: HubRef, listing: Listing) -> Licence:
    """The card's, or where that says nothing that is known, the catalogue's."""
    catalogue = load_catalogue()
    known = catalogue.licences.values()
    stated = licence_from_card(known, listing.licence_tag, listing.licence_name)
    entry = catalogue.of_repository(reference.repo_id)
    return entry.licence if entry is not None and stated.commercial == "unknown" else stated


def _record(reference: HubRef, job: _Job, licence: Licence, folder: Path) -> Record:
    """The account for `folder`; what earlier pulls put there at this commit stays in it."""
    before = pull_record(folder)
    outputs = dict(before.outputs) if before is not None else {}
    outputs |= {Path(n).name: sha for n, sha in job.hashes.items() if n != RECORD_FILE}
    restriction = restriction_of(licence, reference.repo_id)
    return Record(
        verb="pull",
        name=reference.repository,
        settings={
            "reference": str(reference),
            "revision": reference.revision,
            "commit": job.listing.commit,
            "endpoint": constants.ENDPOINT,
        },
        outputs=outputs,
        parents=_own_record(job),
        licence=licence.id,
        notes=() if restriction is None else (restriction,),
    )


def _own_record(job: _Job) -> tuple[Record, ...]:
    """The record that a model of ours brings along, to become the parent of this one."""
    if RECORD_FILE not in job.hashes:
        return ()
    blob = job.blob(job.listing.files[RECORD_FILE])
    try:
        return (Record.from_json(read_object(blob), where=blob),)
    except ModelFileError:  # another program's file of that name
        return ()
