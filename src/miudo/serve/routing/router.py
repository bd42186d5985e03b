"""The state of routing: table, classifier, other servers, and speeds that were measured here.

For: one decision a request, from what is true at that moment.
Not for: asking targets (`miudo.serve.routing.cascade`).
Read next: `miudo.route.decide`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from miudo.engine.remote import RemoteGenerator, RemoteSettings, read_key
from miudo.route.decide import decide
from miudo.route.jobs import complexity_of
from miudo.route.targets import Complexity, Decision, Facts, RouteTable, Target, World

__all__ = ["Router", "open_router"]

# Somebody waits for the answer, and there may be a next target.
_PATIENCE: dict[str, Any] = {
    "attempts": 2, "wait_s": 0.2, "most_wait_s": 1.0, "timeout_s": 60.0, "connect_s": 5.0
}  # fmt: skip


class Router:
    """Decides by `table`; `tell` says how complex a prompt is, None: nothing does.

    `open_models` and `free_bytes` say what is so when they are called.
    """

    def __init__(
        self,
        table: RouteTable,
        tell: Callable[[str], Complexity] | None,
        *,
        open_models: Callable[[], frozenset[str]],
        free_bytes: Callable[[], int],
    ) -> None:
        self.table, self._tell = table, tell
        self._open_models, self._free_bytes = open_models, free_bytes
        self._targets = {target.name: target for target in table.targets}
        remotes = {target.name: target for target in table.targets if target.remote}
        self._keys = {n: read_key(t.key_variable) for n, t in remotes.items() if t.key_variable}
        self._settings = {
            name: RemoteSettings(target.url or "", target.model, seed=None, **_PATIENCE)
            for name, target in remotes.items()
        }
        for name in remotes:  # a key that would travel unencrypted is told at the start
            self.generator(name).close()
        self._speeds: dict[str, float] = {}

    def decide(self, facts: Facts) -> Decision:
        """Returns who is asked, and why not the others."""
        known = None if self._tell is None or facts.text is None else self._tell(facts.text)
        return decide(self.table, facts, self.world(), known)

    def world(self) -> World:
        """Returns what is true now."""
        return World(self._free_bytes(), self._open_models(), dict(self._speeds))

    def target(self, name: str) -> Target:
        """Returns the target called `name`."""
        return self._targets[name]

    def generator(self, name: str, **drawing: Any) -> RemoteGenerator:
        """Returns a connection to a remote target, which draws as `drawing` says."""
        return RemoteGenerator(replace(self._settings[name], **drawing), key=self._keys.get(name))

    def measured(self, name: str, tokens_per_s: float) -> None:
        """Keeps the speed of the last answer, by which deadlines are judged."""
        self._speeds[name] = tokens_per_s


def open_router(
    table: RouteTable,
    beside: Path,
    *,
    open_models: Callable[[], frozenset[str]],
    free_bytes: Callable[[], int],
) -> Router:
    """Returns the router of a table; its classifier lies relative to the folder `beside`.

    Raises what reading it raises, UsageError for an address that is none, MissingError for a
    key that is not there.
    """
    tell = None if table.complexity == "none" else complexity_of(table, beside)
    return Router(table, tell, open_models=open_models, free_bytes=free_bytes)
