"""Writing files so that a crash leaves the old or the new, and hashing them.

For: every durable write of the project, and paths that come from untrusted names.
Not for: file formats (`miudo.formats`) or downloads (`miudo.hub`).
Read next: `miudo.records`.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from miudo.errors import MissingError, MiudoError, ModelFileError, ResourceError, UsageError

__all__ = [
    "atomic_folder",
    "atomic_write",
    "check_output",
    "open_regular",
    "refuse_inputs",
    "resolve_under",
    "sha256_file",
    "sync_folder",
    "translated_disk_errors",
]


def atomic_write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls `write` on a temporary file beside `path`, then renames it over `path`.

    File and folder are synced, so that after a crash `path` holds the old content or the new.
    Raises ResourceError when the disk is full; nothing is left behind then.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with translated_disk_errors(path):
        try:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path` when the block ends without an error.

    An existing folder at `path` is replaced whole, and deleted after the new one stands.
    Raises ResourceError when the disk is full, UsageError where `path` is a file.
    """
    path = path.resolve()  # a link stays, and the folder that it names is replaced
    if path.exists() and not path.is_dir():
        raise UsageError("is a file, not a folder", where=path, remedy="Name another folder")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with translated_disk_errors(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for inner in temporary.rglob("*"):
                if not inner.is_symlink():
                    _sync(inner)
            sync_folder(temporary)
            if path.exists():
                _exchange(temporary, path)
            else:
                temporary.rename(path)
            sync_folder(path.parent)
        finally:
            # Half of the new folder after an error; the old one after an exchange; else nothing.
            shutil.rmtree(temporary, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Path, error: type[MiudoError] = ModelFileError) -> IO[bytes]:
    """Returns `path` opened for reading if it is a regular file.

    A pipe, device or folder raises `error` at once instead of blocking; an absent file
    raises MissingError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as cause:
        raise MissingError("no such file", where=path, remedy="Check the path") from cause
    except OSError as cause:
        raise error(f"cannot be opened ({cause.strerror})", where=path) from cause
    except ValueError as cause:
        raise error(f"cannot be opened ({cause})", where=path) from cause
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error("is not a regular file", where=path, remedy="Name a file")
    return os.fdopen(descriptor, "rb")


def check_output(path: Path) -> None:
    """Raises before long work what writing the file `path` would raise after it.

    MissingError without its folder, UsageError where it is a folder itself, ResourceError where
    nothing can be written beside it.
    """
    if path.is_dir():
        raise UsageError("is a folder, not a file", where=path, remedy="Name a file")
    if not path.parent.is_dir():
        raise MissingError("no such folder", where=path.parent, remedy="Make it first")
    with translated_disk_errors(path), tempfile.TemporaryFile(dir=path.parent):
        pass


def refuse_inputs(out: Path, *inputs: Path | None) -> None:
    """Raises UsageError if writing `out` would replace one of `inputs`, or a folder it is in."""
    target = out.resolve()
    for path in inputs:
        if path is not None and path.resolve().is_relative_to(target):
            raise UsageError(
                "would overwrite what it is made from", where=path, remedy="Give another --out"
            )


def resolve_under(root: Path, name: str) -> Path:
    """Returns `root / name` if it stays inside `root`, links followed.

    A snapshot in the cache of the Hugging Face hub is a folder of links into `blobs`: from there
    they may lead into the `blobs` of its repository or of the cache, and nowhere else. Raises
    ModelFileError for absolute names, `..` and links that lead out.
    """
    base = root.resolve()
    try:
        target = (base / name).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL
        target = None
    roots = (base,) if ".." in Path(name).parts else (base, *_blobs(base))
    inside = target is not None and any(target.is_relative_to(root) for root in roots)
    if target is None or not inside or Path(name).is_absolute():
        raise ModelFileError(
            f"{name[:100]!r} leads out of the folder", where=root, remedy="Use plain file names"
        )
    return target


def _blobs(base: Path) -> tuple[Path, ...]:
    """Where the links of a snapshot, `CACHE/models--ORG--NAME/snapshots/COMMIT`, may lead."""
    repository = base.parent.parent
    if base.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return ()
    return repository / "blobs", repository.parent / "blobs"


def sync_folder(path: Path) -> None:
    """Makes renames inside `path` durable."""
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Swaps two folders in one step where the system can, so that `old` is never absent."""
    libc = ctypes.CDLL(None, use_errno=True)
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    paths = os.fsencode(new), os.fsencode(old)
    renameat2 = getattr(libc, "renameat2", None)
    if renameat2 is not None and renameat2(here, paths[0], here, paths[1], swap) == 0:
        return
    # Two steps elsewhere: a crash between them leaves the old content as `.NAME.HEX.old`.
    aside = old.with_name(f".{old.name}.{secrets.token_hex(4)}.old")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)


@contextmanager
def translated_disk_errors(
    path: Path, remedy: str = "Free some space or choose another folder with --out"
) -> Iterator[None]:
    """Turns a full, read-only or failing disk into ResourceError naming `path`."""
    try:
        yield
    except OSError as error:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES)
        if error.errno in full:
            raise ResourceError(
                f"cannot be written ({error.strerror})",
                where=path,
                remedy=remedy,
            ) from error
        raise
