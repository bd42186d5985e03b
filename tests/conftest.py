"""What every test gets: seeds, a user folder of its own, and the files outside the repository."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _own_user_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test reads or writes the user's own files."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in ("CONFIG", "CACHE", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))
    for name in [n for n in os.environ if n.startswith(("MIUDO_", "HF_")) and n != "MIUDO_SHARED"]:
        monkeypatch.delenv(name)
    # The library read its variables when it was imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "cache" / "huggingface" / "hub"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real text and weights: MIUDO_SHARED, or `../shared` beside the repository."""
    path = Path(os.environ.get("MIUDO_SHARED") or REPOSITORY.parent / "shared")
    if not (path / "data").is_dir():
        pytest.skip(f"needs {path} (set MIUDO_SHARED)")
    return path
