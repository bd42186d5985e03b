"""Model references as parsed values: `./path`, `hf://org/repo[:file][@rev]`, `name[:tag]`.

For: turning what a user typed into a value once, at the door.
Not for: finding the file it names (`miudo.hub`).
Read next: `miudo.hub.resolve`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from miudo.errors import ReferenceNameError

__all__ = [
    "HubRef",
    "LocalRef",
    "ModelRef",
    "StoreRef",
    "is_plain_file_name",
    "parse_reference",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_HUB_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True, slots=True)
class LocalRef:
    """A path on this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class StoreRef:
    """A name in the local store, or of a model inside the package."""

    name: str
    tag: str = "latest"

    def __str__(self) -> str:
        return self.name if self.tag == "latest" else f"{self.name}:{self.tag}"


@dataclass(frozen=True, slots=True)
class HubRef:
    """A repository on the hub, perhaps one file of it, at a revision."""

    organisation: str
    repository: str
    file: str | None = None
    revision: str = "main"

    @property
    def repo_id(self) -> str:
        """The repository as the hub names it: `organisation/repository`."""
        return f"{self.organisation}/{self.repository}"

    def __str__(self) -> str:
        file = f":{self.file}" if self.file else ""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf://{self.repo_id}{file}{revision}"


ModelRef = LocalRef | StoreRef | HubRef


def parse_reference(text: str) -> ModelRef:
    """Returns the reference in `text`. Raises ReferenceNameError saying the three forms.

    A slash at the start, `./`, `../`, `~/` or an existing file or folder is a path.
    """
    if "\0" in text or not _encodable(text):
        raise _refused(text)
    if text.startswith("hf://"):
        return _parse_hub(text)
    if text.startswith(("./", "../", "/", "~/")) or text in (".", ".."):
        return LocalRef(Path(text).expanduser())
    name, colon, tag = text.partition(":")
    if _NAME.fullmatch(name) and (not colon or _NAME.fullmatch(tag)):
        return LocalRef(Path(text)) if os.path.exists(text) else StoreRef(name, tag or "latest")
    if len(text) < 4096 and text.strip():
        return LocalRef(Path(text))
    raise _refused(text)


def _parse_hub(text: str) -> HubRef:
    rest, at, revision = text.removeprefix("hf://").partition("@")
    path, colon, file = rest.partition(":")
    organisation, _, repository = path.partition("/")
    parts = [organisation, repository]
    parts += revision.split("/") if at else []
    parts += file.split("/") if colon else []
    # Every part becomes a folder's or file's name in the store: none may be empty or `..`.
    if not all(_HUB_PART.fullmatch(part) for part in parts):
        raise _refused(text)
    return HubRef(organisation, repository, file or None, revision or "main")


def is_plain_file_name(name: str) -> bool:
    """Whether `name`, folders and all, may become a path in a store: no `..`, no odd letters."""
    return all(_HUB_PART.fullmatch(part) for part in name.split("/"))


def _encodable(text: str) -> bool:
    """Whether `text` can be a file's name: a lone surrogate cannot."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _refused(text: str) -> ReferenceNameError:
    return ReferenceNameError(
        f"{text[:100]!r} names no model",
        remedy="Write ./path, name[:tag] or hf://org/repo[:file][@revision]",
    )
