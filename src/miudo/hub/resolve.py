"""Where the model is that a reference names.

For: files and folders on this machine, and the models inside the package.
Not for: downloads and the local store: they do not exist yet, and the error says so.
Read next: `miudo.names`, `miudo.formats`.
"""

from __future__ import annotations

import os
from pathlib import Path

from miudo.errors import MissingError
from miudo.names import HubRef, LocalRef, ModelRef, parse_reference

__all__ = ["embedded_models", "embedded_path", "model_path", "resolve"]

_EMBEDDED = Path(__file__).parent / "embedded"


def resolve(reference: ModelRef) -> Path:
    """Returns the path of the model. Raises MissingError saying what to do if there is none."""
    if isinstance(reference, LocalRef):
        if not os.path.exists(reference.path):  # a name too long is no error here
            raise MissingError("no such file or folder", where=reference.path, remedy=_CURE)
        return reference.path
    if isinstance(reference, HubRef):
        name = f"hf://{reference.organisation}/{reference.repository}"
        raise MissingError(
            "this version of miudo downloads nothing",
            where=name,
            remedy="Download the repository yourself and give its path",
        )
    models = embedded_models()
    if reference.name in models and reference.tag == "latest":
        return models[reference.name]
    raise MissingError(f"no model is called {reference.name!r} here", remedy=_CURE)


def model_path(text: str | None) -> Path:
    """Returns the path of the model that a user named; None is the one inside the package."""
    return embedded_path() if text is None else resolve(parse_reference(text))


def embedded_models(folder: Path = _EMBEDDED) -> dict[str, Path]:
    """Returns the models inside the package, by name."""
    return {path.stem: path for path in sorted(folder.glob("*.gguf"))}


def embedded_path(folder: Path = _EMBEDDED) -> Path:
    """Returns the package's own model. Raises MissingError in a build without one."""
    for path in embedded_models(folder).values():
        return path
    raise MissingError("this build of miudo has no model inside", where=folder, remedy=_CURE)


_CURE = "Give the path of a model folder or a .gguf file; `miudo demo` makes one"
