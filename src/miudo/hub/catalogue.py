"""Models that people talk about: where they are, their size, memory, licence, and what for.

For: `miudo catalog`, and turning `name:tag` into a repository on the hub.
Not for: models on this machine (`miudo.hub.store`, `miudo.hub.cache`).
Read next: `catalogue.toml` beside this file; `miudo.hub.memory` for the arithmetic.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.errors import UsageError
from miudo.hub.licences import Licence, parse_licences
from miudo.hub.memory import (
    PRECISIONS,
    Shape,
    Size,
    Structure,
    kv_cache_bytes,
    size_of,
    weights_bytes,
)
from miudo.names import HubRef, StoreRef

__all__ = ["STRUCTURES", "Catalogue", "Claim", "Entry", "load_catalogue"]

_FILE = Path(__file__).with_name("catalogue.toml")
_SHAPE = ("vocab_size", "d_model", "max_positions", "tied")

STRUCTURES: Mapping[str, Structure] = {
    "gpt2": Structure(gated=False, norm_vectors=2, qkv_bias=True, other_bias=True, table_offset=0),
    "bloom": Structure(
        gated=False, norm_vectors=2, qkv_bias=True, other_bias=True, embed_norm=True
    ),
    # Two rows of OPT's position table come before the first position.
    "opt": Structure(gated=False, norm_vectors=2, qkv_bias=True, other_bias=True, table_offset=2),
    "neox": Structure(gated=False, norm_vectors=2, qkv_bias=True, other_bias=True),
    "llama": Structure(),
    "qwen2": Structure(qkv_bias=True),
    "qwen3": Structure(qk_norm="head"),
    "mistral": Structure(),
    "phi": Structure(),
    "stablelm": Structure(norm_vectors=2),
    "gemma2": Structure(norms=4),
    "gemma3": Structure(norms=4, qk_norm="head"),
    "minicpm": Structure(),
    "minicpm3": Structure(),
    "openelm": Structure(qk_norm="head"),
    "dclm": Structure(qk_norm="full"),
    "granite": Structure(),
    "olmo2": Structure(qk_norm="full"),
    "smollm3": Structure(),
}
"""What the models of each family have in common, as far as it takes memory."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a model's makers say it is good at, and the page where they say so."""

    task: str
    claim: str
    source: str
    unconfirmed: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue; `unconfirmed` names fields of general knowledge."""

    name: str
    tag: str
    family: str
    hub: HubRef
    base: HubRef | None
    shape: Shape
    languages: tuple[str, ...]
    licence: Licence
    good_at: tuple[Claim, ...]
    unconfirmed: tuple[str, ...]
    note: str | None

    @property
    def reference(self) -> str:
        """What a user types: `name:tag`."""
        return f"{self.name}:{self.tag}"

    @property
    def size(self) -> Size:
        """How many values it has, from its shape."""
        return size_of(self.shape, STRUCTURES[self.family])

    def weights_bytes(self) -> dict[str, int]:
        """Returns the bytes of its weights at each precision, computed from the shape."""
        return {name: weights_bytes(self.size, name) for name in PRECISIONS}

    def kv_bytes(self, context: int) -> int:
        """Returns the bytes of keys and values at `context` tokens, or at its own most."""
        return kv_cache_bytes(self.shape, min(context, self.shape.max_positions))

    def fits(self, budget: int, context: int) -> str | None:
        """Returns the widest precision at which weights and cache take at most `budget` bytes."""
        room = budget - self.kv_bytes(context)
        return next((name for name, size in self.weights_bytes().items() if size <= room), None)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All entries and all licences that are known."""

    entries: tuple[Entry, ...]
    licences: Mapping[str, Licence]

    def find(self, reference: StoreRef) -> HubRef | None:
        """Returns the repository of `name:tag`, or of `name` alone where it has one size.

        `-base` after the tag means the model before it was taught to chat. None for an unknown
        name; raises UsageError listing the tags for one that is known.
        """
        sizes = [entry for entry in self.entries if entry.name == reference.name]
        if not sizes:
            return None
        if reference.tag == "latest" and len(sizes) == 1:
            return sizes[0].hub
        tags = {entry.tag: entry.hub for entry in sizes}
        tags |= {f"{entry.tag}-base": entry.base for entry in sizes if entry.base is not None}
        if reference.tag in tags:
            return tags[reference.tag]
        asked = "comes in sizes" if reference.tag == "latest" else f"has no tag {reference.tag!r}"
        names = ", ".join(f"{reference.name}:{tag}" for tag in tags)
        raise UsageError(asked, where=reference.name, remedy=f"Say one of {names}")

    def of_repository(self, repo_id: str) -> Entry | None:
        """Returns the entry whose repository, chat or base, is `repo_id`; None without one."""
        for entry in self.entries:
            if repo_id in (entry.hub.repo_id, entry.base.repo_id if entry.base else None):
                return entry
        return None

    def name_of(self, reference: HubRef) -> str | None:
        """Returns the `name:tag` that means exactly `reference`, None without one."""
        for entry in self.entries:
            if reference == entry.hub:
                return entry.reference
            if reference == entry.base:
                return f"{entry.reference}-base"
        return None

    def chosen(
        self,
        *,
        budget: int | None = None,
        context: int = 4096,
        licence: str | None = None,
        task: str | None = None,
    ) -> tuple[Entry, ...]:
        """Returns the entries that fit into `budget` bytes, are under `licence`, do `task`.

        `licence` is "commercial", "permissive" or an identifier. Raises UsageError for a task or
        licence that no entry has.
        """
        task = None if task is None else task.lower()
        if task is not None and task not in self.tasks():
            known = ", ".join(self.tasks())
            raise UsageError(f"no model is listed for {task!r}", remedy=f"Say one of {known}")
        kinds = {"commercial": ("yes", "conditions"), "permissive": ("yes",)}
        ids = {entry.licence.id.lower() for entry in self.entries}
        if licence is not None and licence.lower() not in {*kinds, *ids}:
            known = ", ".join([*kinds, *sorted({entry.licence.id for entry in self.entries})])
            raise UsageError(f"no model is under {licence!r}", remedy=f"Say one of {known}")
        wanted = (licence or "").lower()
        return tuple(
            entry
            for entry in self.entries
            if (budget is None or entry.fits(budget, context) is not None)
            and (
                not wanted
                or entry.licence.commercial in kinds.get(wanted, ())
                or entry.licence.id.lower() == wanted
            )
            and (task is None or task in {claim.task for claim in entry.good_at})
        )

    def tasks(self) -> tuple[str, ...]:
        """Returns every task that some model is said to be good at."""
        return tuple(sorted({c.task for entry in self.entries for c in entry.good_at}))


@functools.cache
def load_catalogue() -> Catalogue:
    """Returns the catalogue in the package."""
    with _FILE.open("rb") as file:
        values = tomllib.load(file)
    licences = parse_licences(values["licences"])
    entries = tuple(
        _entry({**{k: v for k, v in series.items() if k != "models"}, **model}, licences)
        for series in values["series"]
        for model in series["models"]
    )
    return Catalogue(entries, licences)


def _entry(values: Mapping[str, Any], licences: Mapping[str, Licence]) -> Entry:
    base = values.get("base")
    return Entry(
        name=values["name"],
        tag=values["tag"],
        family=values["family"],
        hub=_repository(values["hub"]),
        base=None if base is None else _repository(base),
        shape=_shape(values),
        languages=tuple(values["languages"]),
        licence=licences[values["licence"]],
        good_at=tuple(Claim(**claim) for claim in values["good_at"]),
        unconfirmed=tuple(values.get("unconfirmed", ())),
        note=values.get("note"),
    )


def _repository(repo_id: str) -> HubRef:
    organisation, _, repository = repo_id.partition("/")
    return HubRef(organisation, repository)


def _shape(values: Mapping[str, Any]) -> Shape:
    latent = values.get("latent")
    n_layers = values.get("n_layers") or len(values["d_ff"])
    heads = _per_layer(values["n_heads"], n_layers)
    return Shape(
        n_heads=heads,
        n_kv_heads=_per_layer(values.get("n_kv_heads", list(heads)), n_layers),
        head_dim=values.get("head_dim", values["d_model"] // heads[0]),
        d_ff=_per_layer(values["d_ff"], n_layers),
        latent=None if latent is None else tuple(latent),
        **{name: values[name] for name in _SHAPE},
    )


def _per_layer(value: int | Iterable[int], n_layers: int) -> tuple[int, ...]:
    return (value,) * n_layers if isinstance(value, int) else tuple(value)
