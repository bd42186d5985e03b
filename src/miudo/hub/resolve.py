"""Where the model is that a reference names.

For: files and folders, models inside the package, imported ones, and the hub's cache.
Not for: the network: only `miudo pull` goes there, and the error says so.
Read next: `miudo.names`, `miudo.hub.store`, `miudo.hub.cache`.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from miudo.errors import MissingError, UsageError
from miudo.names import HubRef, LocalRef, ModelRef, StoreRef, parse_reference

__all__ = [
    "embedded_models",
    "embedded_path",
    "hub_reference",
    "model_path",
    "on_hub",
    "resolve",
]

_EMBEDDED = Path(__file__).parent / "embedded"
_CURE = "Give a model folder, a .gguf file, or a name of `miudo list` or `miudo catalog`"


def resolve(reference: ModelRef) -> Path:
    """Returns the path of the model. Raises MissingError saying what to do if there is none."""
    if isinstance(reference, LocalRef):
        if not os.path.exists(reference.path):  # a name too long is no error here
            cure = _as_hub_name(reference) or _CURE
            raise MissingError("no such file or folder", where=reference.path, remedy=cure)
        return reference.path
    if isinstance(reference, StoreRef):
        return _named(reference)
    return _cached(reference, str(reference))


def model_path(text: str | None) -> Path:
    """Returns the path of the model that a user named; None is the one inside the package."""
    return embedded_path() if text is None else resolve(parse_reference(text))


def hub_reference(reference: ModelRef) -> HubRef:
    """Returns where on the hub a model is that a user wants to fetch.

    Raises UsageError for a path, MissingError for a name that the catalogue does not have.
    """
    if isinstance(reference, HubRef):
        return reference
    if isinstance(reference, LocalRef):
        cure = _as_hub_name(reference) or "Name a model of `miudo catalog`, or hf://org/repo"
        raise UsageError("is a path, nothing to fetch", where=reference, remedy=cure)
    from miudo.hub.catalogue import load_catalogue

    catalogue = load_catalogue()
    found = catalogue.find(reference)
    if found is None:
        near = _nearest(reference.name, {entry.name for entry in catalogue.entries})
        cure = f"{near}See `miudo catalog`, or name hf://org/repo"
        raise MissingError("is not in the catalogue", where=str(reference), remedy=cure)
    return found


def on_hub(reference: ModelRef) -> HubRef | None:
    """Returns where on the hub the model of `reference` comes from, None for others."""
    if isinstance(reference, StoreRef):
        from miudo.hub.catalogue import load_catalogue
        from miudo.hub.store import stored_path

        return load_catalogue().find(reference) if stored_path(reference) is None else None
    return reference if isinstance(reference, HubRef) else None


def embedded_models(folder: Path = _EMBEDDED) -> dict[str, Path]:
    """Returns the models inside the package, by name."""
    return {path.stem: path for path in sorted(folder.glob("*.gguf"))}


def embedded_path(folder: Path = _EMBEDDED) -> Path:
    """Returns the package's own model. Raises MissingError in a build without one."""
    for path in embedded_models(folder).values():
        return path
    raise MissingError("this build of miudo has no model inside", where=folder, remedy=_CURE)


def _named(reference: StoreRef) -> Path:
    from miudo.hub.catalogue import load_catalogue
    from miudo.hub.store import stored_models, stored_path

    if (stored := stored_path(reference)) is not None:
        return stored
    models = embedded_models()
    if reference.name in models and reference.tag == "latest":
        return models[reference.name]
    catalogue = load_catalogue()
    on_hub = catalogue.find(reference)
    if on_hub is not None:
        return _cached(on_hub, str(reference))
    known = {entry.name for entry in catalogue.entries} | models.keys()
    near = _nearest(reference.name, known | {m.reference.name for m in stored_models()})
    missing = f"no model is called {str(reference)!r} here"
    if reference.name.endswith(".gguf"):
        missing = f"there is no file {reference.name!r} here"
    raise MissingError(missing, remedy=near + _CURE)


def _cached(reference: HubRef, asked: str) -> Path:
    from miudo.hub.cache import cached_path

    path = cached_path(reference)
    if path is None:
        raise MissingError(
            "is not on this machine, or not whole",
            where=asked if asked == str(reference) else f"{asked} ({reference})",
            remedy=f"Fetch it: miudo pull {asked}",
        )
    return path


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"Did you mean {near[0]}? " if near else ""


def _as_hub_name(reference: LocalRef) -> str | None:
    """What to do about `org/repo`, which other programs take for a repository on the hub."""
    text = str(reference.path)
    if text.endswith(".gguf"):  # a file that is not there, no repository
        return None
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text, re.ASCII):
        return f"For the repository on the hub write hf://{text}"
    return None
