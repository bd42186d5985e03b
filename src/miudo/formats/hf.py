"""Hugging Face folders, both ways: config.json, weights, tokenizer, template, record.

For: the working form of a model; `transformers`, vLLM and PEFT load what is written here.
Not for: which files hold the weights (`miudo.formats.shards`); written is safetensors alone.
Read next: `miudo.families.llama` for the names, `miudo.formats.shards` for the bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from miudo.config import ModelConfig
from miudo.errors import ConfigError, MissingError, ModelFileError
from miudo.families import FAMILIES, by_hf_config, for_config, misfits
from miudo.families.family import Family
from miudo.families.places import sources
from miudo.files import (
    atomic_folder,
    resolve_under,
    sha256_file,
)
from miudo.formats.hf_text import (
    read_chat_template,
    read_tokenizer,
    read_values,
    write_text_side,
)
from miudo.formats.layout import canonical_weights, join
from miudo.formats.model_file import ModelFile
from miudo.formats.padding import paddings
from miudo.formats.precision import converted
from miudo.formats.safetensors import write_safetensors
from miudo.formats.shards import read_weights
from miudo.formats.sparse import dense_weights
from miudo.plain_json import write_json
from miudo.records import RECORD_FILE, Record
from miudo.tensors import DType, StoredTensor, Weights

__all__ = [
    "as_folder",
    "check_folder",
    "family_of",
    "read_folder",
    "verify_file",
    "verify_folder",
    "write_folder",
]

_WEIGHTS = "model.safetensors"


def read_folder(folder: Path) -> ModelFile:
    """Returns the model in `folder`, tensors memory-mapped in miudo's layout.

    Raises MissingError or ModelFileError listing every tensor that is missing, foreign or
    misshapen. Nothing outside `folder` is read and no key that names code is followed.
    """
    values = read_values(folder, "config.json")
    if values is None:
        raise MissingError(
            "has no config.json",
            where=folder,
            remedy=f"Name {folder / 'model'}"
            if (folder / "model" / "config.json").exists()
            else "Name the folder that holds the model",
        )
    family = family_of(values, folder / "config.json")
    tokenizer = read_values(folder, "tokenizer_config.json") or {}
    stored = _named(read_weights(folder, skip=family.hf_ignored), family)
    head = family.hf_names["head.weight"]
    config = _config(folder, family, values, tokenizer, has_head=head in stored)
    if config.tie_embeddings:
        stored.pop(head, None)  # a stray copy of the token table, which is what counts
    wanted = sources(config, family.hf_names, family.hf_layout)
    return ModelFile(
        config=config,
        weights=canonical_weights(wanted, stored, config, folder),
        tokenizer=read_tokenizer(folder, tokenizer, config),
        chat_template=read_chat_template(folder, tokenizer),
        record=_record(folder),
        architecture=family.architectures[0],
        path=folder,
    )


def family_of(values: Mapping[str, Any], where: object) -> Family:
    """Returns the family of a folder whose config.json, at `where`, holds `values`.

    Raises ModelFileError for architectures that are not read, and for quantised weights.
    """
    if (quantised := values.get("quantization_config")) is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise ModelFileError(
            f"quantization_config says {method or quantised!r:.80}: the weights are quantised",
            where=where,
            remedy="Open the unquantised model, or its GGUF file",
        )
    try:
        return by_hf_config(values)
    except ModelFileError as error:  # which knows no path
        raise ModelFileError(error.what, where=where, remedy=error.remedy) from error


def _config(
    folder: Path,
    family: Family,
    values: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    *,
    has_head: bool,
) -> ModelConfig:
    given = dict(values)
    if given.get("tie_word_embeddings") is None:  # then the tensors decide
        given["tie_word_embeddings"] = not has_head
    generation = read_values(folder, "generation_config.json") or {}
    ends = [v if isinstance(v, list) else [v] for v in _both("eos_token_id", generation, values)]
    flat = [i for several in ends for i in several if i is not None]
    given["eos_token_id"] = [i for n, i in enumerate(flat) if i not in flat[:n]]
    if tokenizer.get("add_bos_token") is False:  # an id is named, but nothing begins with it
        given["bos_token_id"] = None
    try:
        return family.config_from_hf(given)
    except ConfigError as error:
        # Its own class would blame the user's flags.
        raise ModelFileError(
            error.what, where=folder / "config.json", remedy="The file is damaged or hostile"
        ) from error
    except ModelFileError as error:
        raise ModelFileError(
            error.what, where=folder / str(error.where), remedy=error.remedy
        ) from error


def _both(key: str, *several: Mapping[str, Any]) -> list[Any]:
    return [values.get(key) for values in several]


def _named(stored: Mapping[str, StoredTensor], family: Family) -> dict[str, StoredTensor]:
    """With the family's prefix, which files of the bare model leave out."""
    prefix, head = family.hf_prefix, family.hf_names["head.weight"]
    if any(name.startswith(prefix) for name in stored.keys() - {head}):
        return dict(stored)
    return {name if name == head else prefix + name: t for name, t in stored.items()}


def _record(folder: Path) -> Record | None:
    values = read_values(folder, RECORD_FILE)
    return None if values is None else Record.from_json(values, where=folder / RECORD_FILE)


def verify_folder(folder: Path) -> None:
    """Raises ModelFileError naming a file whose hash is not the one in the folder's record.

    Reads every byte, which opening does not. A folder without a record passes.
    """
    record = _record(folder)
    for name, digest in (record.outputs if record is not None else {}).items():
        path = resolve_under(folder, name)
        if not path.is_file():
            raise ModelFileError("is in the record and missing", where=path)
        _check_hash(path, digest)


def verify_file(path: Path) -> None:
    """Raises ModelFileError for a file whose hash is not that of the record beside it.

    One that has none beside it, or is not in it, passes.
    """
    record = _record(path.parent)
    digest = None if record is None else record.outputs.get(path.name)
    if digest is not None:
        _check_hash(path, digest)


def _check_hash(path: Path, digest: str) -> None:
    if sha256_file(path) != digest:
        raise ModelFileError(
            "is not the file of the record: another hash",
            where=path,
            remedy="Files of different saves were mixed; fetch them again",
        )


def write_folder(path: Path, model: ModelFile, *, dtype: DType = DType.F32) -> tuple[str, ...]:
    """Writes `model` as a folder that `transformers` loads; returns notes on what was adapted.

    Unequal feed-forward widths and heads are padded with zeros, which is exact. Raises
    ModelFileError if no family's files can say what the config says, for a block dtype, and
    for values that are not finite. The folder appears whole or not at all.
    """
    if dtype.block != 1:
        raise ModelFileError(f"a folder cannot hold {dtype}", where=path, remedy="Export to GGUF")
    family, config, weights, notes = as_folder(model)
    if family is None:
        raise _indescribable(config, path, "Export to GGUF: miudo reads it as its own architecture")
    with atomic_folder(path) as folder:
        values = family.config_to_hf(config) | {"torch_dtype": _torch_name(dtype)}
        write_json(folder / "config.json", values)
        with (folder / _WEIGHTS).open("xb") as file:
            write_safetensors(file, _hf_tensors(family, config, weights, dtype))
        write_text_side(folder, model, values)
        if model.record is not None:
            outputs = {p.name: sha256_file(p) for p in sorted(folder.iterdir())}
            dataclasses.replace(model.record, outputs=outputs).write(folder)
    return notes


def check_folder(model: ModelFile, where: object, remedy: str) -> None:
    """Raises ModelFileError with `remedy` if `write_folder` could not write `model`.

    For verbs that write it hours later.
    """
    family, config, _, _ = as_folder(model)
    if family is None:
        raise _indescribable(config, where, remedy)


def _indescribable(config: ModelConfig, where: object, remedy: str) -> ModelFileError:
    why = f"no Hugging Face folder holds such a model ({misfits(config)})"
    return ModelFileError(why, where=where, remedy=remedy)


def as_folder(model: ModelFile) -> tuple[Family | None, ModelConfig, Weights, tuple[str, ...]]:
    """Returns a family whose folders can hold `model`, the model as it lies there, and notes.

    The family is None where there is none. One that `transformers` knows comes first, also if
    unequal layers have to be padded for it.
    """
    model = dataclasses.replace(model, weights=dense_weights(model.weights))
    for config, weights, notes in paddings(model.config, model.weights):
        family = for_config(config, model.architecture)
        if family is not None and not family.foreign:
            return family, config, weights, notes + _notes(family, model)
    own = for_config(model.config, model.architecture)
    return own, model.config, model.weights, _notes(own, model)


def _notes(family: Family | None, model: ModelFile) -> tuple[str, ...]:
    """What a reader of the folder would not expect of its class."""
    if family is None:
        return ()
    name, was = family.architectures[0], model.architecture
    foreign = (f"{name} is read by its authors' code and miudo alone",) if family.foreign else ()
    if was in family.architectures or not any(was in f.architectures for f in FAMILIES):
        return foreign
    return (*foreign, f"{was} is written as {name}, which says the same")


def _hf_tensors(
    family: Family, config: ModelConfig, weights: Weights, dtype: DType
) -> Iterator[tuple[str, StoredTensor]]:
    for source in sources(config, family.hf_names, family.hf_layout):
        # What is subtracted from must not be rounded before.
        exact = DType.F32 if source.plus else dtype
        joined = join(source, {n: converted(n, weights[n], exact) for n in source.targets})
        yield source.name, joined if exact is dtype else converted(source.name, joined, dtype)


def _torch_name(dtype: DType) -> str:
    return {DType.F32: "float32", DType.F16: "float16", DType.BF16: "bfloat16"}[dtype]
