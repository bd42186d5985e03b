"""One file from the hub into its cache: resumed where it stopped, kept only if its hash is right.

For: `pull`. The cache is shared: blobs, locks and names are those of `huggingface_hub`.
Not for: choosing files (`miudo.hub.needed`) or what the hub says of them (`miudo.hub.remote`).
Read next: `miudo.hub.cache`.

The library's own download starts a large file anew after every interruption, and checks its
size but not its hash. Here what came so far stays as `DIGEST.incomplete`, and the same lock
keeps others away from it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import httpx2
from filelock import Timeout
from huggingface_hub import constants, get_session
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    WeakFileLock,
    hf_raise_for_status,
)

from miudo.errors import ModelFileError
from miudo.files import sync_folder, translated_disk_errors
from miudo.hub.remote import RemoteFile, request_headers

__all__ = ["CACHE", "Progress", "fetch_blob"]

Progress = Callable[[int], None]
"""Called with the bytes of a file that are there by now."""

CACHE = "HF_HUB_CACHE"
"""The variable that says where the cache is."""

_CHUNK = 1 << 20
# Seconds to wait after an attempt that brought nothing; then it is given up.
_WAITS = (0.5, 1.0, 2.0)
_PATIENCE_S = 0.5


def fetch_blob(
    url: str,
    file: RemoteFile,
    repository: Path,
    *,
    where: object,
    progress: Progress,
    waiting: Callable[[str], None],
) -> str:
    """Puts the file at `url` into `repository`, a folder of the cache; returns its SHA-256.

    A blob that is there with the right hash is left alone; another program that fetches it is
    waited for, and `waiting` told the file's name. Raises ModelFileError for other bytes than
    `file` says, ResourceError for a full disk, and what `translated` translates. What came so
    far stays unless it was wrong.
    """
    blob = repository / "blobs" / file.digest
    lock = repository.parent / ".locks" / repository.name / f"{file.digest}.lock"
    with translated_disk_errors(blob, f"Free some space, or choose another folder with {CACHE}"):
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(WeakFileLock(lock, timeout=_PATIENCE_S))
            except Timeout:
                waiting(file.name)
                held.enter_context(WeakFileLock(lock))
            if blob.is_file() and (found := _checked(blob, file, progress)) is not None:
                return found
            return _fetch(url, file, blob, where=where, progress=progress)


class _Digests:
    """SHA-256 of the bytes so far, and git's hash of the file where the hub states that one."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self.restart()

    def restart(self) -> None:
        self.size, self._sha256 = 0, hashlib.sha256()
        self._named = self._sha256
        if len(self._file.digest) == 40:
            start = b"blob %d\0" % self._file.size
            self._named = hashlib.sha1(start, usedforsecurity=False)

    def add(self, data: bytes) -> None:
        self._sha256.update(data)
        if self._named is not self._sha256:
            self._named.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def right(self) -> bool:
        return self.size == self._file.size and self._named.hexdigest() == self._file.digest


def _checked(path: Path, file: RemoteFile, progress: Progress) -> str | None:
    """Returns the SHA-256 of what `path` holds if that is `file`."""
    if path.stat().st_size != file.size:
        return None
    with path.open("rb") as content:
        digests = _digested(content, file, progress)
    return digests.sha256 if digests.right else None


def _digested(content: BinaryIO, file: RemoteFile, progress: Progress) -> _Digests:
    digests = _Digests(file)
    while data := content.read(_CHUNK):
        digests.add(data)
        progress(digests.size)
    return digests


def _fetch(url: str, file: RemoteFile, blob: Path, *, where: object, progress: Progress) -> str:
    part = blob.with_name(f"{blob.name}.incomplete")
    with part.open("a+b") as content:
        content.seek(0)
        digests = _digested(content, file, progress)
        if digests.size >= file.size and not digests.right:
            content.truncate(0)
            digests.restart()
        failures = 0
        while digests.size < file.size:
            before = digests.size
            try:
                _receive(url, file, content, digests, progress)
            except (httpx2.TransportError, httpx2.DecodingError):
                if digests.size > before:
                    failures = 0
                if failures == len(_WAITS):
                    raise
                time.sleep(_WAITS[failures])
                failures += 1
        content.flush()
        os.fsync(content.fileno())
    if not digests.right:
        part.unlink()
        raise ModelFileError(
            f"{file.name} came with other bytes than the hub states: {digests.size:,} of "
            f"{file.size:,}, SHA-256 {digests.sha256[:12]}",
            where=where,
            remedy="They were thrown away; pull again, and if it stays so, something on the way "
            "changes the file",
        )
    part.replace(blob)
    sync_folder(blob.parent)
    return digests.sha256


def _receive(
    url: str, file: RemoteFile, content: BinaryIO, digests: _Digests, progress: Progress
) -> None:
    """Appends to `content`, and adds to `digests`, what the server sends from where they end.

    A server that sends the file from its beginning is taken at its word. Stops past the size.
    """
    headers = request_headers()
    if digests.size:
        headers["range"] = f"bytes={digests.size}-"
    with get_session().stream(
        "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    ) as response:
        hf_raise_for_status(response)
        starts = response.headers.get("content-range", "").startswith(f"bytes {digests.size}-")
        if digests.size and not (response.status_code == 206 and starts):
            content.truncate(0)
            digests.restart()
        for data in response.iter_bytes():
            content.write(data)
            digests.add(data)
            progress(digests.size)
            if digests.size > file.size:
                break
    if digests.size < file.size:
        raise httpx2.RemoteProtocolError(f"{file.name} ended after {digests.size} bytes")
