"""The weights of a Hugging Face folder, in one file or many: safetensors, else `torch.save`'s.

For: finding the files, and holding an index against what they really contain.
Not for: what the names mean (`miudo.formats.hf`).
Read next: `miudo.formats.safetensors`, `miudo.formats.tensor_pickle`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.errors import MissingError, ModelFileError
from miudo.files import resolve_under
from miudo.formats.safetensors import read_safetensors
from miudo.formats.tensor_pickle import read_tensor_pickle
from miudo.limits import LIMITS
from miudo.strict_json import read_object
from miudo.tensors import StoredTensor

__all__ = ["INDEX_SUFFIX", "WEIGHT_FILES", "read_weights", "shard_names", "weight_files"]

INDEX_SUFFIX = ".index.json"


@dataclass(frozen=True, slots=True)
class _Form:
    """One way to lie in a folder: `whole`, or shards listed by the file beside it."""

    whole: str
    read: Callable[..., dict[str, StoredTensor]]

    @property
    def index(self) -> str:
        return self.whole + INDEX_SUFFIX


# The first that is there counts, as for `transformers`.
_FORMS = (
    _Form("model.safetensors", read_safetensors),
    _Form("pytorch_model.bin", read_tensor_pickle),
)
WEIGHT_FILES = tuple(name for form in _FORMS for name in (form.whole, form.index))
"""Of these the first that a folder has holds its weights, or is an index that names files."""


def weight_files(folder: Path) -> list[Path]:
    """Returns the files of `folder` that hold its weights, by their names alone, sorted."""
    for form in _FORMS:
        if files := sorted(folder.glob(f"*{Path(form.whole).suffix}")):
            return files
    return []


def read_weights(folder: Path, *, skip: tuple[str, ...] = ()) -> dict[str, StoredTensor]:
    """Returns the tensors of `folder` but for names ending in `skip`, memory-mapped.

    Raises MissingError where there are none or shards are absent, ModelFileError listing every
    tensor that is not where the index says, and what the readers of the files raise.
    """
    for form in _FORMS:
        if _is_there(folder / form.whole):
            return form.read(resolve_under(folder, form.whole), skip=skip)
        if _is_there(folder / form.index):
            return _read_shards(folder, form, skip)
    raise MissingError(f"has no {' and no '.join(form.whole for form in _FORMS)}", where=folder)


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _read_shards(folder: Path, form: _Form, skip: tuple[str, ...]) -> dict[str, StoredTensor]:
    where = folder / form.index
    index = read_object(resolve_under(folder, form.index))
    shards = shard_names(index, form.index, where)
    listed = index["weight_map"]
    if absent := [shard for shard in shards if not _is_there(folder / shard)]:
        raise MissingError(
            f"lacks {len(absent)} of {len(shards)} shards: {', '.join(absent[:20])}",
            where=folder,
            remedy="Fetch them again",
        )
    held = {shard: form.read(resolve_under(folder, shard), skip=skip) for shard in shards}
    wanted = {n: shard for n, shard in listed.items() if not (skip and n.endswith(skip))}
    if wrong := list(_differences(wanted, held)):
        raise ModelFileError(
            "shards hold other tensors than the index says: " + "; ".join(wrong),
            where=where,
            remedy="Shards of different saves were mixed; fetch them again",
        )
    return {name: held[shard][name] for name, shard in wanted.items()}


def shard_names(index: Mapping[str, Any], name: str, where: object) -> list[str]:
    """Returns the files that `index`, the content of the one of WEIGHT_FILES called `name`, names.

    Raises ModelFileError for an index without a map, and for names that lead elsewhere or to
    files of another kind.
    """
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not listed or len(listed) > LIMITS.tensors:
        raise ModelFileError("weight_map is no map of names", where=where)
    suffix = Path(name.removesuffix(INDEX_SUFFIX)).suffix
    return sorted({_plain_name(shard, suffix, where) for shard in listed.values()})


def _plain_name(shard: object, suffix: str, where: object) -> str:
    """A shard's name, which an index may not make a path or a file of another kind."""
    if not isinstance(shard, str) or not shard.endswith(suffix):
        raise ModelFileError(f"names the shard {shard!r:.100}", where=where)
    if len(shard) > 255 or not shard.isprintable() or set(shard) & set("/\\"):
        raise ModelFileError(
            f"the shard {shard!r:.100} is no plain file name",
            where=where,
            remedy="Shards lie beside their index",
        )
    return shard


def _differences(
    wanted: Mapping[str, str], held: Mapping[str, Mapping[str, StoredTensor]]
) -> Iterator[str]:
    for shard, tensors in held.items():
        for name in tensors:
            said = wanted.get(name)
            if said is None:
                yield f"{name} is in {shard} and not in the index"
            elif said != shard:
                yield f"{name} is in {shard}, the index says {said}"
    for name, shard in wanted.items():
        if name not in held[shard]:
            yield f"{name} is missing from {shard}"
