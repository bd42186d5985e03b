"""A real server: a process of its own, asked over sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from served import KEY, Server, start_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    made = start_server("--parallel", "4", "--queue", "4", "--threads", "1")
    yield made
    made.end()


@pytest.fixture(scope="session")
def locked() -> Iterator[Server]:
    """A server that asks for a key."""
    made = start_server("--threads", "1", MIUDO_API_KEY=KEY)
    yield made
    made.end()
