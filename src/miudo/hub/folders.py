"""Where miudo keeps what is its own on this machine.

For: the store, and what the program notes for itself: history, running servers.
Not for: the Hugging Face hub's cache, which is shared (`miudo.hub.cache`).
Read next: `miudo.hub.store`.

    MIUDO_HOME          ~/.local/share/miudo    imported models, licences that were stated
    MIUDO_HOME/state    ~/.local/state/miudo    prompts that were typed, servers that run
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["config_folder", "home_folder", "private_folder", "state_folder"]


def home_folder() -> Path:
    """Returns where miudo keeps models and notes: `MIUDO_HOME`, or the user's data folder."""
    given = os.environ.get("MIUDO_HOME")
    return Path(given) if given else _users("XDG_DATA_HOME", ".local/share")


def state_folder() -> Path:
    """Returns where miudo keeps what may be lost: under `MIUDO_HOME`, or the user's state."""
    given = os.environ.get("MIUDO_HOME")
    return Path(given) / "state" if given else _users("XDG_STATE_HOME", ".local/state")


def config_folder() -> Path:
    """Returns where the user's own settings lie."""
    return _users("XDG_CONFIG_HOME", ".config")


def private_folder(path: Path) -> Path:
    """Returns `path`, made where it is absent so that its owner alone may look into it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _users(variable: str, usual: str) -> Path:
    given = os.environ.get(variable)
    return (Path(given) if given else Path.home() / usual) / "miudo"
