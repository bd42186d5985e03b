"""Asking the Hugging Face hub what a repository holds, and what its refusals mean.

For: commit, files, hashes and licence of a repository, from one answer that is not trusted.
Not for: fetching the files (`miudo.hub.download`) or what is here already (`miudo.hub.cache`).
Read next: `miudo.hub.pull`.

Session, token, endpoint, timeouts and offline mode are those of `huggingface_hub`, so its
variables (`HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`, `HF_HUB_ETAG_TIMEOUT` ...) hold here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub import constants, get_session, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

from miudo import __version__
from miudo.errors import MissingError, MiudoError, ModelFileError
from miudo.limits import LIMITS
from miudo.names import HubRef

__all__ = ["Listing", "RemoteFile", "file_url", "list_repository", "request_headers", "translated"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ANSWER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository: `digest` is a SHA-256 (64 letters) or git's SHA-1 (40).

    It is also the name of the file's blob in the cache.
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds at `commit`; licence tag and name as its card states them."""

    commit: str
    files: Mapping[str, RemoteFile]
    licence_tag: object = None
    licence_name: object = None


def list_repository(reference: HubRef) -> Listing:
    """Returns what the hub says of the repository at the reference's revision.

    Raises MissingError without network, repository, revision or permission, with what to do;
    ModelFileError for an answer that no hub gives.
    """
    revision = quote(reference.revision, safe="")
    url = f"{constants.ENDPOINT}/api/models/{reference.repo_id}/revision/{revision}"
    with translated(reference):
        answer = _get(url)
    try:
        values = json.loads(answer)
        return _listing(values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelFileError(
            f"the server's answer is none of a hub ({type(error).__name__}: {error})",
            where=url,
            remedy="Check HF_ENDPOINT",
        ) from error


def file_url(reference: HubRef, commit: str, name: str) -> str:
    """Returns the address of the file `name` at `commit`."""
    return f"{constants.ENDPOINT}/{reference.repo_id}/resolve/{commit}/{quote(name)}"


def request_headers() -> dict[str, str]:
    """Returns the headers of a request to the hub; a token is sent to no other host.

    Not those of `huggingface_hub`, which first asks the hub for a list to tell who is calling.
    """
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    given = {"authorization": f"Bearer {token}"} if token else {}
    return {"user-agent": f"miudo/{__version__}", "accept-encoding": "identity", **given}


@contextmanager
def translated(reference: HubRef) -> Iterator[None]:
    """Turns what the hub or the network raises into an error that says what to do."""
    try:
        yield
    except (HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, OfflineModeIsEnabled) as error:
        raise _explained(error, reference) from error


def _get(url: str) -> bytes:
    """Returns the body of an answer, at most as long as any honest one."""
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    with get_session().stream(
        "GET", url, params={"blobs": "true"}, headers=request_headers(), timeout=timeout
    ) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _ANSWER_BYTES:
                raise ModelFileError(f"an answer of more than {_ANSWER_BYTES} bytes", where=url)
    return bytes(body)


def _listing(values: Mapping[str, Any]) -> Listing:
    commit = values["sha"]
    if not _COMMIT.fullmatch(commit):
        raise ValueError(f"commit {commit[:60]!r}")
    siblings = values["siblings"]
    if len(siblings) > LIMITS.tensors:
        raise ValueError(f"{len(siblings)} files")
    files = {}
    for given in siblings:
        lfs = given.get("lfs")
        size = lfs["size"] if lfs else given.get("size")
        digest = lfs["sha256"] if lfs else given.get("blobId")
        known = isinstance(digest, str) and (_SHA256 if lfs else _COMMIT).fullmatch(digest)
        # A file without size or hash can't be checked, so it can't be taken.
        if known and type(size) is int and size >= 0:
            files[str(given["rfilename"])] = RemoteFile(str(given["rfilename"]), size, digest)
    card = values.get("cardData") or {}
    return Listing(commit, files, card.get("license"), card.get("license_name"))


def _explained(error: Exception, reference: HubRef) -> MiudoError:
    name, page = str(reference), f"{constants.ENDPOINT}/{reference.repo_id}"
    if isinstance(error, OfflineModeIsEnabled):
        return MissingError("offline mode is on", where=name, remedy="Unset HF_HUB_OFFLINE")
    if isinstance(error, GatedRepoError):
        return MissingError(
            "is gated: its owner wants terms accepted first",
            where=name,
            remedy=f"Open {page}, accept them, make a token in your settings there, and pull "
            "again with HF_TOKEN set to it",
        )
    if isinstance(error, RepositoryNotFoundError):
        return MissingError(
            "there is no such repository, or it is private",
            where=name,
            remedy="Check the name; for a private one set HF_TOKEN",
        )
    if isinstance(error, RevisionNotFoundError):
        cure = "Check what follows the @"
        return MissingError(f"has no revision {reference.revision!r}", where=name, remedy=cure)
    if isinstance(error, DisabledRepoError):
        return MissingError("was disabled by the hub", where=name, remedy=f"See {page}")
    if isinstance(error, HfHubHTTPError):
        return _refused(error.response.status_code, name)
    return MissingError(
        f"cannot reach {constants.ENDPOINT} ({error or type(error).__name__})",
        where=name,
        remedy="Check the network, a proxy, HF_ENDPOINT; what is in the cache runs without",
    )


def _refused(status: int, name: str) -> MissingError:
    cures = {401: "Check HF_TOKEN", 403: "Check what HF_TOKEN permits", 404: "Check the name"}
    cure = "Try again later" if status == 429 or status >= 500 else "Check the name and HF_TOKEN"
    return MissingError(f"the hub answers {status}", where=name, remedy=cures.get(status, cure))
