"""Opening a model, whatever its format: the content decides, not the name.

For: the one door through which files become a `ModelFile`.
Not for: names of models in a store or on a hub (`miudo.hub`).
Read next: `miudo.formats.hf`, `miudo.formats.gguf`.
"""

from __future__ import annotations

from pathlib import Path

from miudo.errors import MissingError, ModelFileError
from miudo.files import open_regular
from miudo.formats.gguf import read_gguf
from miudo.formats.hf import read_folder
from miudo.formats.model_file import ModelFile

__all__ = ["open_model"]

_FOREIGN = {
    b"PK\x03\x04": "a zip archive, as PyTorch saves pickles in",
    b"\x80\x02": "a pickle, which could run code",
    b"\x80\x03": "a pickle, which could run code",
    b"\x80\x04": "a pickle, which could run code",
    b"\x80\x05": "a pickle, which could run code",
}


def open_model(path: Path) -> ModelFile:
    """Returns the model in a Hugging Face folder or a GGUF file, weights memory-mapped.

    Raises MissingError if there is nothing at `path`, ModelFileError for anything else.
    """
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        raise MissingError("no such file or folder", where=path, remedy="Check the path")
    with open_regular(path) as file:
        magic = file.read(4)
    if magic == b"GGUF":
        return read_gguf(path)
    foreign = next((text for start, text in _FOREIGN.items() if magic.startswith(start)), None)
    raise ModelFileError(
        f"is {foreign or 'no model that miudo knows'}",
        where=path,
        remedy="Give a folder with config.json and model.safetensors, or a .gguf file",
    )
