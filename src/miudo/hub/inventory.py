"""All models that go by a name on this machine, wherever they lie.

For: `miudo list`, the name under which one is imported, and `miudo rm`.
Not for: opening them (`miudo.formats`).
Read next: `miudo.hub.store`, `miudo.hub.cache`, `miudo.hub.resolve`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from miudo.errors import MissingError, ReferenceNameError, UsageError
from miudo.formats import open_model
from miudo.hub.cache import CachedModel, cached_models, cached_path, remove_cached
from miudo.hub.catalogue import load_catalogue
from miudo.hub.resolve import embedded_models, on_hub
from miudo.hub.store import remove_stored, stored_models, stored_path
from miudo.names import HubRef, StoreRef, parse_reference
from miudo.records import Record

__all__ = ["free_name", "inventory", "remove_model"]


def inventory() -> list[dict[str, Any]]:
    """Returns name, path, bytes, licence and origin of every model here, as plain values."""
    rows = [
        _row(name, path, path.stat().st_size, open_model(path).record, "the package")
        for name, path in embedded_models().items()
    ]
    for stored in stored_models():
        row = _row(str(stored.reference), stored.path, stored.size_bytes, stored.record, "imported")
        rows.append(row)
    catalogue = load_catalogue()
    for cached in cached_models():
        entry = catalogue.of_repository(cached.reference.repo_id)
        by = cached.record.created if cached.record else "by another program"
        row = _row(
            catalogue.name_of(cached.reference) or str(cached.reference),
            cached.path,
            cached.size_bytes,
            cached.record,
            f"{cached.reference}, {by}",
        )
        if row["licence"] is None and entry is not None:
            row["licence"] = entry.licence.id
        rows.append(row | {"reference": str(cached.reference), "commit": cached.commit})
    return rows


def free_name(path: Path, name: str | None) -> StoreRef:
    """Returns the name under which the model at `path` may be imported.

    Raises UsageError for a name that the package or the catalogue has, ReferenceNameError for
    one that is none.
    """
    text = name or re.sub(r"[^a-z0-9._-]+", "-", path.resolve().stem.lower()).strip("-._")
    try:
        reference = parse_reference(text)
    except ReferenceNameError:
        reference = None
    if not isinstance(reference, StoreRef):
        cure = "Give --name: small letters, digits, dots, dashes, and a :tag if you like"
        raise ReferenceNameError(f"{text[:100]!r} is no name for a model", remedy=cure)
    taken = {entry.name for entry in load_catalogue().entries} | embedded_models().keys()
    if reference.name in taken:
        raise UsageError(
            "is the name of a model that miudo knows",
            where=reference.name,
            remedy="Give another --name",
        )
    return reference


def remove_model(reference: StoreRef | HubRef, *, force: bool = False) -> int:
    """Deletes a model; returns the bytes freed.

    Raises MissingError if it is not here, UsageError for one of the package, and for one that
    another program fetched unless `force`.
    """
    if isinstance(reference, StoreRef):
        if stored_path(reference) is not None:
            return remove_stored(reference)
        if reference.name in embedded_models():
            raise UsageError("is part of miudo", where=str(reference), remedy="Leave it there")
    source = on_hub(reference)
    found = None if source is None else _cached(source)
    if found is None:
        raise MissingError(
            "is not on this machine", where=str(reference), remedy="See `miudo list`"
        )
    if found.record is None and not force:
        raise UsageError(
            "was fetched by another program, which may need it",
            where=str(reference),
            remedy="Give --force to delete it all the same",
        )
    return remove_cached(found)


def _cached(reference: HubRef) -> CachedModel | None:
    path = cached_path(reference)
    return next((m for m in cached_models() if m.path == path), None)


def _row(name: str, path: Path, size: int, record: Record | None, origin: str) -> dict[str, Any]:
    licence = None if record is None else record.licence
    return {
        "name": name,
        "path": str(path),
        "size_bytes": size,
        "licence": licence,
        "from": origin,
    }
