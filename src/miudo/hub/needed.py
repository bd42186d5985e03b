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
from miudo.formats.shards import INDEX_SUFFIX, WEIGHT_FILES, shard_names
from miudo.records import RECORD_FILE
from miudo.strict_json import read_object

__all__ = ["CONFIG_FILE", "folder_files", "needed_files", "shards"]

CONFIG_FILE = "config.json"
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


def needed_files(names: Collection[str], where: object) -> tuple[tuple[str, ...], str]:
    """Returns the small files that a model in a folder of `names` needs, and its weights.

    The latter is one file, or ends in INDEX_SUFFIX and names several: see `shards`. Raises
    MissingError for a folder without a config or weights, naming GGUF files that it has.
    """
    weights = next((name for name in WEIGHT_FILES if name in names), None)
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
    return (*small, weights, *shards(index, weights, names, folder / weights))


def shards(
    index: Mapping[str, Any], weights: str, names: Collection[str], where: object
) -> tuple[str, ...]:
    """Returns the files that `index`, the content of `weights`, names.

    Raises what `shard_names` raises, and ModelFileError for names that are not among `names`.
    """
    found = shard_names(index, weights, where)
    for name in found:
        if name not in names:
            raise ModelFileError(
                f"names {name[:100]!r}, which is not there",
                where=where,
                remedy="The model is incomplete where it comes from",
            )
    return tuple(found)
