"""A mixture: several texts, each with its licence, and how often an epoch passes over it.

For: what a recipe says about its data, and which block comes at which place of training.
Not for: reading the text (`miudo.data.sources`) or packing it (`miudo.data.pack`).
Read next: `miudo.data.packed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from miudo.data.sources import Document, ReadSettings, find_files, read_documents
from miudo.errors import ConfigError, MissingError
from miudo.records import is_licence

__all__ = ["MAX_WEIGHT", "Part", "Source", "read_mixture", "source_files", "stated_licence"]

MAX_WEIGHT = 100.0


@dataclass(frozen=True, slots=True)
class Source:
    """One text of a mixture; `path` (a file, folder or glob) lies under the recipe's root.

    `weight` is how many times an epoch passes over it: 2 is twice, 0.5 the half of it.
    `licence` is an SPDX expression, or LicenseRef- and a name. `held_out` None takes the
    share that holds for all. Raises ConfigError for what means nothing.
    """

    name: str
    path: str
    licence: str
    weight: float = 1.0
    held_out: float | None = None
    read: ReadSettings = field(default_factory=ReadSettings)

    def __post_init__(self) -> None:
        for name in ("name", "path", "licence"):
            if not getattr(self, name).strip():
                raise ConfigError(f"{name} is empty", where=f"source {self.name!r}")
        if not is_licence(self.licence):
            raise ConfigError(
                f"licence is {self.licence!r}, no SPDX expression",
                where=f"source {self.name!r}",
                remedy="Give an identifier such as CC-BY-4.0, or LicenseRef- and a name; join "
                "several by AND, OR",
            )
        if not 0.0 < self.weight <= MAX_WEIGHT:
            raise ConfigError(
                f"weight is {self.weight}",
                where=f"source {self.name!r}",
                remedy=f"Give a number above 0, up to {MAX_WEIGHT:g}; leave out what weighs 0",
            )
        if self.held_out is not None and not 0.0 <= self.held_out < 1.0:
            raise ConfigError(
                f"held_out is {self.held_out}, allowed 0 up to below 1",
                where=f"source {self.name!r}",
            )


@dataclass(frozen=True, slots=True)
class Part:
    """One source's run of ids in a token file: from `start`, `tokens` long."""

    name: str
    start: int
    tokens: int
    weight: float = 1.0

    def blocks(self, length: int) -> int:
        """Returns how many blocks of `length`, with one id more as target, one pass has."""
        return max(0, (self.tokens - 1) // length)

    def rows(self, length: int) -> int:
        """Returns how many blocks of it an epoch of the mixture shows."""
        return round(self.weight * self.blocks(length))


def source_files(sources: Sequence[Source], root: Path) -> list[tuple[int, Path]]:
    """Returns every file of the mixture with the number of its source, in order.

    Raises ConfigError for two sources of one name, MissingError naming source and path.
    """
    names = [source.name for source in sources]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two sources are called {doubled[0]!r}", where="sources")
    found = []
    for number, source in enumerate(sources):
        try:
            files = find_files([root / source.path])
        except MissingError as error:
            raise _absent(source, error.where, root) from error
        for path in files:
            if not path.is_file():
                raise _absent(source, path, root)
            found.append((number, path))
    return found


def read_mixture(sources: Sequence[Source], root: Path) -> Iterator[Document]:
    """Yields the documents of every source in order, `part` being the source's number.

    Raises what `source_files` and `read_documents` raise.
    """
    for number, path in source_files(sources, root):
        for document in read_documents([path], sources[number].read):
            yield replace(document, part=number)


def stated_licence(sources: Sequence[Source]) -> str | None:
    """Returns all licences of the sources as one SPDX expression; None without sources."""
    stated = sorted({source.licence for source in sources})
    joined = [f"({text})" if " OR " in text else text for text in stated]
    return " AND ".join(joined) or None


def _absent(source: Source, where: object, root: Path) -> MissingError:
    return MissingError(
        f"the text of source {source.name!r} is not there",
        where=where,
        remedy=f"Put it under {root}, name another root, or take the source out of the recipe",
    )
