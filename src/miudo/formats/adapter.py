"""Opening a LoRA adapter, whatever its form: a GGUF file or a PEFT folder.

For: the one door through which files become an `Adapter`, and telling what a file is.
Not for: laying it over a model (`miudo.engine.native`).
Read next: `miudo.formats.gguf_adapter`, `miudo.formats.peft`.
"""

from __future__ import annotations

from pathlib import Path

from miudo.adapter import Adapter
from miudo.config import ModelConfig
from miudo.errors import MissingError, ModelFileError
from miudo.files import open_regular
from miudo.formats.gguf_adapter import read_gguf_adapter, scan_gguf_adapter
from miudo.formats.gguf_reader import read_container
from miudo.formats.peft import PEFT_CONFIG, TEMPLATE_FILE, read_peft
from miudo.limits import LIMITS
from miudo.records import Record

__all__ = ["adapter_record", "adapter_template", "is_adapter", "open_adapter"]


def open_adapter(path: Path, config: ModelConfig) -> Adapter:
    """Returns the adapter at `path`, for a model of `config`.

    Raises MissingError if there is nothing at `path`, ModelFileError for what is no adapter of
    such a model. Whether it is this model's: `miudo.adapter.check_adapter`.
    """
    if path.is_dir():
        if not (path / PEFT_CONFIG).is_file():
            raise ModelFileError(
                f"has no {PEFT_CONFIG}", where=path, remedy="Give a PEFT folder or a .gguf adapter"
            )
        return read_peft(path, config)
    if not path.exists():
        raise MissingError("no such file or folder", where=path, remedy="Check the path")
    return read_gguf_adapter(path, config)


def is_adapter(path: Path) -> bool:
    """Whether `path` is an adapter: by a folder's files, by a GGUF file's keys."""
    if path.is_dir():
        return (path / PEFT_CONFIG).is_file()
    with open_regular(path) as file:
        if file.read(4) != b"GGUF":
            return False
    return read_container(path).text("general.type") == "adapter"


def adapter_template(path: Path) -> str | None:
    """Returns the chat template that the adapter at `path` was trained with, if it says.

    Raises ModelFileError for one that is not UTF-8.
    """
    if not path.is_dir():
        return scan_gguf_adapter(path).chat_template
    if not (path / TEMPLATE_FILE).exists():
        return None
    with open_regular(path / TEMPLATE_FILE) as file:
        text = file.read(LIMITS.template_bytes + 1)
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ModelFileError(f"is not UTF-8 ({error})", where=path / TEMPLATE_FILE) from error


def adapter_record(path: Path) -> Record | None:
    """Returns the record of the adapter at `path`, None without one."""
    return Record.read(path) if path.is_dir() else scan_gguf_adapter(path).record
