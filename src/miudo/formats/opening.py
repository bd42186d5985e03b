"""Opening a model, whatever its format: the content decides, not the name.

For: the one door through which files become a `ModelFile`.
Not for: names of models in a store or on a hub (`miudo.hub`).
Read next: `miudo.formats.hf`, `miudo.formats.gguf`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

from miudo.config import ModelConfig
from miudo.errors import MissingError, ModelFileError
from miudo.files import open_regular
from miudo.formats.blocks import is_finite
from miudo.formats.gguf import read_gguf
from miudo.formats.mapping import WatchedWeights
from miudo.formats.model_file import ModelFile
from miudo.records import Record
from miudo.tensors import Weights

__all__ = ["open_model"]

_FOREIGN = {
    b"PK\x03\x04": "a zip archive, as PyTorch saves pickles in",
    b"\x80\x02": "a pickle, which could run code",
    b"\x80\x03": "a pickle, which could run code",
    b"\x80\x04": "a pickle, which could run code",
    b"\x80\x05": "a pickle, which could run code",
}


# Larger files are checked only when asked: it would read every page of the map.
_CHECKED_BYTES = 64 << 20


def open_model(
    path: Path,
    *,
    strict_finite: bool = False,
    ready: Callable[[ModelConfig, Weights], None] | None = None,
) -> ModelFile:
    """Returns the model in a Hugging Face folder or a GGUF file, weights memory-mapped.

    Weights that are not finite are warned of (looked for in models up to 64 MiB), or refused
    with `strict_finite`. `ready` is called as soon as config and weights are known: a tokenizer
    takes long to read, and what goes wrong with it is raised after that.

    Raises MissingError if there is nothing at `path`, ModelFileError for
    anything that is no whole and exact model.
    """
    model = _open(path, ready)
    tensors = model.weights.values()
    if strict_finite or sum(t.size_bytes for t in tensors) <= _CHECKED_BYTES:
        odd = [name for name, tensor in model.weights.items() if not is_finite(tensor)]
        if odd and strict_finite:
            raise ModelFileError(f"not finite: {', '.join(odd)}", where=path)
        if odd:
            names = ", ".join(odd[:5])
            warnings.warn(f"{path}: weights that are not finite: {names}", stacklevel=2)
    return model


def _open(path: Path, ready: Callable[[ModelConfig, Weights], None] | None) -> ModelFile:
    watched: list[Weights] = []

    def tell(config: ModelConfig, weights: Weights) -> None:
        watched.append(WatchedWeights(weights, path))
        if ready is not None:
            ready(config, watched[0])

    model = _read(path, tell)
    if not watched:
        tell(model.config, model.weights)
    return dataclasses.replace(model, weights=watched[0])


def _read(path: Path, ready: Callable[[ModelConfig, Weights], None]) -> ModelFile:
    if path.is_dir():
        # Here, since a GGUF file is open before these are imported.
        from miudo.formats.hf import read_folder
        from miudo.formats.peft import PEFT_CONFIG

        if (path / PEFT_CONFIG).is_file() and not (path / "config.json").exists():
            raise ModelFileError(
                "is an adapter, not a model", where=path, remedy="Give its model, and --adapter"
            )
        return read_folder(path)
    if not path.exists():
        raise MissingError("no such file or folder", where=path, remedy="Check the path")
    with open_regular(path) as file:
        magic = file.read(4)
    if magic == b"GGUF":
        return _with_origin(read_gguf(path, ready=ready), path)
    foreign = next((text for start, text in _FOREIGN.items() if magic.startswith(start)), None)
    raise ModelFileError(
        f"is {foreign or 'no model that miudo knows'}",
        where=path,
        remedy="Give a folder with config.json and weights, or a .gguf file",
    )


def _with_origin(model: ModelFile, path: Path) -> ModelFile:
    """With the record beside a GGUF file that says where it came from; its own is the parent."""
    try:
        origin = Record.read(path.parent)
    except ModelFileError:  # of something else in that folder
        return model
    if origin is None or path.name not in origin.outputs:
        return model
    if model.record is not None and not origin.parents:
        origin = dataclasses.replace(origin, parents=(model.record,))
    return dataclasses.replace(model, record=origin)
