"""The servers that run on this machine, each a file that it holds locked while it lives.

For: `miudo ps`, and whoever wants to know which port a model is at.
Not for: what a server does (`miudo.serve.app`).
Read next: `miudo.serve.run`, which registers.

    STATE/servers/PID.json    url, models, when it began; readable by its owner alone

A lock ends with its process, however that ends: a file whose lock can be had is stale.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from miudo.hub.folders import private_folder, state_folder

__all__ = ["RunningServer", "registered", "running_servers"]

_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RunningServer:
    """One server: its process, where it listens, the models by name, and since when."""

    pid: int
    url: str
    models: Mapping[str, str]
    since: str


@contextmanager
def registered(url: str, models: Mapping[str, Path]) -> Iterator[None]:
    """Registers this process for a block. A file that cannot be kept keeps no server from work."""
    file: Path | None = None
    descriptor = -1
    with suppress(OSError):
        folder = private_folder(_folder())
        file = folder / f"{os.getpid()}.json"
        value = {
            "schema": 1,
            "url": url,
            "models": {name: str(path.resolve()) for name, path in models.items()},
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # Locked before it has its name: nobody finds it without its lock.
        new = folder / f".{os.getpid()}.tmp"
        descriptor = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, json.dumps(value).encode())
        new.replace(file)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                file.unlink(missing_ok=True)
        if descriptor >= 0:
            os.close(descriptor)


def running_servers() -> list[RunningServer]:
    """Returns the servers of this user that run, oldest first; deletes what dead ones left."""
    found = [server for file in _folder().glob("*.json") if (server := _read(file)) is not None]
    return sorted(found, key=lambda server: (server.since, server.pid))


def _folder() -> Path:
    return state_folder() / "servers"


def _read(file: Path) -> RunningServer | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _free(descriptor):
            file.unlink(missing_ok=True)
            return None
        value: Any = json.loads(os.read(descriptor, _MOST_BYTES))
        return RunningServer(int(file.stem), value["url"], dict(value["models"]), value["since"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    finally:
        os.close(descriptor)


def _free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
