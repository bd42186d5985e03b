"""Keeps what the zoo's suite measured, and writes it where ZOO_RESULTS says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

_MEASURED = pytest.StashKey[dict[str, dict[str, float | str]]]()


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str, str, float | str], None]:
    """Records a number of a case under a column of the table in docs/zoo.md."""
    table = request.config.stash.setdefault(_MEASURED, {})

    def keep(case: str, column: str, value: float | str) -> None:
        row = table.setdefault(case, {})
        held = row.get(column)
        worse = isinstance(held, float) and isinstance(value, float) and held > value
        row[column] = held if worse and held is not None else value

    return keep


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the measurements of this run as JSON."""
    path, table = os.environ.get("ZOO_RESULTS"), session.config.stash.get(_MEASURED, {})
    if path and table:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
