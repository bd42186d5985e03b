"""A real server: a process of its own, asked over sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from served import Server, locked, start_server

__all__ = ["locked"]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    made = start_server("--parallel", "4", "--queue", "4", "--threads", "1")
    yield made
    made.end()
