"""Which files of a repository or folder a model needs: never code, never a second copy.

For: `pull`, which fetches no more, and `import`, which copies no more.
Not for: fetching (`miudo.hub.download`) or reading them (`miudo.formats.hf`).
Read next: `miudo.hub.pull`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from miudo.errors import MissingError, ModelFileError
from miudo.files import resolve_under
from miudo.formats.strict_json import read_object
from miudo.names import is_plain_file_name
from miudo.records import RECORD_FILE

__all__ = ["CONFIG_FILE", "INDEX_SUFFIX", "folder_files", "needed_files", "shards"]

CONFIG_FILE = "config.json"
INDEX_SUFFIX = ".index.json"
_BESIDE = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    RECORD_FILE,
)
# The first of these that is there holds the weights; an index names files that do.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json",
            "pytorch_model.bin", "pytorch_model.bin.index.json")  # fmt: skip


def needed_files(names: Collection[str], where: object) -> tuple[tuple[str, ...], str]:
    """Returns the small files that a model in a folder of `names` needs, and its weights.

    The latter is one file, or ends in INDEX_SUFFIX and names several: see `shards`. Raises
    MissingError for a folder without a config or weights, naming GGUF files that it has.
    """
    weights = next((name for name in _WEIGHTS if name in names), None)
    if CONFIG_FILE in names and weights is not None:
        small = (CONFIG_FILE, *(name for name in _BESIDE if name in names))
        return small, weights
    files = sorted(name for name in names if name.endswith(".gguf"))
    lacks = CONFIG_FILE if CONFIG_FILE not in names else "safetensors or pytorch_model.bin"
    raise MissingError(
        f"holds no {lacks}",
        where=where,
        remedy=f"Name one of its GGUF files after a colon: {', '.join(files[:12])}"
        if files
        else "Name a repository or folder that holds a model",
    )


def folder_files(folder: Path) -> tuple[str, ...]:
    """Returns the names of all files that the model in `folder` needs.

    Raises what `needed_files` and `shards` raise.
    """
    names = {path.name for path in folder.iterdir()}
    small, weights = needed_files(names, folder)
    if not weights.endswith(INDEX_SUFFIX):
        return (*small, weights)
    index = read_object(resolve_under(folder, weights))
    return (*small, weights, *shards(index, names, folder / weights))


def shards(index: Mapping[str, Any], names: Collection[str], where: object) -> tuple[str, ...]:
    """Returns the files of weights that `index` names.

    Raises ModelFileError for an index without a map, with names that lead elsewhere, or that
    are not among `names`.
    """
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ModelFileError("weight_map is no map of names", where=where)
    found = sorted({str(name) for name in listed.values()})
    for name in found:
        if not is_plain_file_name(name):
            raise ModelFileError(f"names the file {name[:100]!r}", where=where)
        if name not in names:
            raise ModelFileError(
                f"names {name[:100]!r}, which is not there",
                where=where,
                remedy="The model is incomplete where it comes from",
            )
    return tuple(found)
