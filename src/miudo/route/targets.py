"""What a request may be sent to, what it demands, and what was decided: plain data.

For: the values that pass between the parts of this room.
Not for: the rules themselves (`miudo.route.constraints`, `miudo.route.decide`).
Read next: `miudo.route.decide`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from miudo.errors import ConfigError

__all__ = [
    "AUTO",
    "Complexity",
    "Decision",
    "Facts",
    "Measure",
    "Refusal",
    "RouteTable",
    "Target",
    "World",
]

AUTO = "auto"
"""The name under which a client asks for whichever target suits."""

Measure = Literal["mean", "min", "margin"]


@dataclass(frozen=True, slots=True)
class Target:
    """A model that may answer: `model` is a reference, or with `url` a name that server knows.

    `leaves` says that what is sent there leaves this machine's keeping; every address but
    loopback must say so. `memory_bytes` is what a local one takes once it is open.
    `tokens_per_s` was measured (`miudo bench`). `uses` lists what its licence permits, nothing:
    any use. A prompt whose complexity is above `skip_above` is not given to it; an answer whose
    confidence is below `accept_above` goes to the next. Raises ConfigError.
    """

    name: str
    model: str
    url: str | None = None
    key_variable: str | None = None
    leaves: bool = False
    memory_bytes: int = 0
    tokens_per_s: float | None = None
    licence: str | None = None
    uses: tuple[str, ...] = ()
    skip_above: float | None = None
    accept_above: float | None = None

    def __post_init__(self) -> None:
        where = f"target {self.name!r:.60}"
        # The name travels in a header.
        fine = self.name.isascii() and self.name.isprintable() and " " not in self.name
        if not fine or not 0 < len(self.name) <= 200 or self.name == AUTO:
            raise ConfigError(
                f"the name {self.name!r:.60} cannot be", where=where,
                remedy=f"Give a short one of plain letters without spaces, and not {AUTO!r}",
            )  # fmt: skip
        if not self.model:
            raise ConfigError("no model is named", where=where, remedy="Give model")
        if self.memory_bytes < 0:
            raise ConfigError(f"memory_bytes is {self.memory_bytes}", where=where)
        if self.tokens_per_s is not None and not 0.0 < self.tokens_per_s < 1e9:
            raise ConfigError(f"tokens_per_s is {self.tokens_per_s}", where=where)
        for name in ("skip_above", "accept_above"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} is {value}, allowed 0 to 1", where=where)
        self._check_address(where)

    @property
    def remote(self) -> bool:
        """Whether another server answers."""
        return self.url is not None

    def _check_address(self, where: str) -> None:
        if self.url is None:
            if self.leaves or self.key_variable:
                raise ConfigError(
                    "leaves and key_variable are of a target with a url", where=where,
                    remedy="Give its url, or leave them out",
                )  # fmt: skip
            return
        if not self.leaves and not _is_loopback(self.url):
            raise ConfigError(
                f"{self.url[:200]!r} is another machine", where=where,
                remedy="Say leaves = true where prompts may go there",
            )  # fmt: skip
        if self.accept_above is not None:
            raise ConfigError(
                "accept_above needs log-probabilities, which a url does not give", where=where,
                remedy="Leave it out: such a target's answer is final",
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Targets from the cheapest to the dearest, and how one is chosen.

    `complexity` is "none", "keywords", or the folder of a classifier (`miudo route train`).
    `confidence` is what `accept_above` is held against (`miudo.route.confidence`).
    `on_failure`: whether a target that fails is an error, or the next one answers.
    `offline` and `stays` hold for every request; `licences` lists those that may answer, empty:
    all.
    """

    targets: tuple[Target, ...]
    complexity: str = "none"
    confidence: Measure = "mean"
    on_failure: Literal["next", "error"] = "next"
    offline: bool = False
    stays: bool = False
    licences: tuple[str, ...] = ()
    schema: int = 1

    def __post_init__(self) -> None:
        if self.schema != 1:
            raise ConfigError(f"schema is {self.schema}, this miudo reads 1", where="route table")
        names = [target.name for target in self.targets]
        if not names or len(set(names)) < len(names):
            raise ConfigError(
                f"the targets are {', '.join(names) or 'none'}", where="route table",
                remedy="Give at least one, each with a name of its own",
            )  # fmt: skip
        skips = any(target.skip_above is not None for target in self.targets)
        if skips and self.complexity == "none":
            raise ConfigError(
                "skip_above is given, and nothing tells complexity", where="route table",
                remedy='Give complexity = "keywords", or the folder of `miudo route train`',
            )  # fmt: skip

    def classifier(self, beside: Path) -> Path | None:
        """Returns the classifier's folder, relative to the table's, None where there is none."""
        return None if self.complexity in ("none", "keywords") else beside / self.complexity


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a request. `text` is what complexity is read from, None: it has no text.

    `needs` are parts of the protocol that not every target has. `deadline_s` counts from now.
    """

    text: str | None
    max_tokens: int | None = None
    needs: frozenset[str] = frozenset()
    offline: bool = False
    stays: bool = False
    deadline_s: float | None = None
    use: str | None = None


@dataclass(frozen=True, slots=True)
class World:
    """What is true of this machine now: free memory, models that are open, measured speeds."""

    free_bytes: int
    open: frozenset[str] = frozenset()
    tokens_per_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A target that may not or shall not answer, by which rule, and in words."""

    target: str
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Complexity:
    """How likely the cheapest target is wrong, 0 to 1, by whom, and what speaks most for it."""

    value: float
    method: str
    signals: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """Who is asked in which order, and every other target with its reason."""

    order: tuple[str, ...]
    refused: tuple[Refusal, ...]
    complexity: Complexity | None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "order": list(self.order),
            "refused": [asdict(refusal) for refusal in self.refused],
            "complexity": None if self.complexity is None else asdict(self.complexity),
        }


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
