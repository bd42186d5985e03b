"""GGUF files, both ways: weights, tokenizer, template, card and record in one file.

For: the device form of a model; llama.cpp and Ollama run what is written here.
Not for: the container's bytes (`miudo.formats.gguf_reader`, `miudo.formats.gguf_writer`).
Read next: `miudo.families.llama` for names and keys.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from miudo.config import ModelConfig
from miudo.errors import ModelFileError
from miudo.families import by_gguf, for_gguf
from miudo.families.family import Family
from miudo.families.gguf_rope import rope_tensors
from miudo.families.places import Source, sources
from miudo.files import atomic_write
from miudo.formats.gguf_config import family_config, own_config
from miudo.formats.gguf_reader import Container, read_container
from miudo.formats.gguf_tokenizer import (
    WHOLE_TOKENIZER,
    read_tokenizer,
    special_keys,
    tokenizer_keys,
)
from miudo.formats.gguf_writer import write_container
from miudo.formats.layout import (
    canonical_weights,
    join,
    pair_rows,
)
from miudo.formats.model_file import ModelFile
from miudo.formats.padding import paddings
from miudo.formats.precision import held_as
from miudo.formats.sparse import check_sparse, dense_weights
from miudo.records import Record
from miudo.strict_json import parse_object
from miudo.tensors import (
    DType,
    Role,
    StoredTensor,
    Weights,
    check_weights,
    tensor_table,
)

__all__ = [
    "CHAT_TEMPLATE",
    "GgufReport",
    "paired",
    "read_gguf",
    "record_keys",
    "stored_record",
    "write_gguf",
]

CHAT_TEMPLATE = "tokenizer.chat_template"
"""The key of a chat template, in models and, of miudo alone, in adapters."""

# What no family's keys can say is written under this name, so that other readers refuse it.
_OWN = "miudo"
_SCHEMA = 1
# Which tensors of bytes are sparse matrices, and of which type: JSON, name to type.
_SPARSE = "miudo.sparse"
# `general.file_type`: what most of a file is. Of k-quants the names for unmixed types ("small").
_FILE_TYPES = {
    DType.F32: 0, DType.F16: 1, DType.Q4_0: 2, DType.Q4_1: 3, DType.Q8_0: 7, DType.Q5_0: 8,
    DType.Q5_1: 9, DType.Q2_K: 10, DType.Q3_K: 11, DType.Q4_K: 14, DType.Q5_K: 16,
    DType.Q6_K: 18, DType.IQ4_NL: 25, DType.IQ4_XS: 30, DType.BF16: 32, DType.MXFP4: 38,
    DType.TQ1_0: 36, DType.TQ2_0: 37,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufReport:
    """What was written: type by tensor, tensors that did not fit the type asked for, sizes.

    `bits_per_weight` counts all tensors' bytes, scales included, over all parameters.
    `architecture` is the name under which other programs know the file, "miudo" if none does.
    """

    architecture: str
    dtypes: Mapping[str, DType]
    fallbacks: tuple[str, ...]
    notes: tuple[str, ...]
    bits_per_weight: float
    size_bytes: int


def write_gguf(
    path: Path, model: ModelFile, *, dtype: DType | None = None, languages: tuple[str, ...] = ()
) -> GgufReport:
    """Writes `model` as one GGUF file, atomically, and reports which tensor got which type.

    Without `dtype` every tensor keeps the type it has; what does not fit `dtype` becomes what
    `precision.stored_dtype` says. Tensors are made and written one by one, so that only the
    largest must fit in memory. Raises ModelFileError for values that are not finite,
    ConfigError for a type that is only read.
    """
    check_weights(model.config, model.weights)
    if dtype is not None:
        model = dataclasses.replace(model, weights=dense_weights(model.weights))
    family, config, weights, notes = _fitting(model)
    weights = held_as(config, weights, dtype)
    note = None if family is None else family.gguf_note(config)
    tensors = _file_tensors(family, config, weights)
    keys = _keys(family, config, model, languages) | {
        "general.file_type": _FILE_TYPES[_usual_type(weights).dense]
    }
    if sparse := {n: t.dtype for n, t in weights.items() if t.dtype.sparse}:
        keys[_SPARSE] = json.dumps(sparse, separators=(",", ":"))
    atomic_write(path, lambda file: write_container(file, keys, tensors))
    size = sum(t.size_bytes for t in weights.values())
    return GgufReport(
        architecture=keys["general.architecture"],
        dtypes={name: t.dtype for name, t in weights.items()},
        fallbacks=tuple(n for n in _matrices(config) if dtype not in (None, weights[n].dtype)),
        notes=notes if note is None else (*notes, note),
        bits_per_weight=8 * size / sum(prod(t.shape) for t in weights.values()),
        size_bytes=path.stat().st_size,
    )


def _fitting(model: ModelFile) -> tuple[Family | None, ModelConfig, Weights, tuple[str, ...]]:
    """A family that can say the model, and the model padded if only that makes it one."""
    if any(tensor.dtype.sparse for tensor in model.weights.values()):
        return None, model.config, model.weights, ()  # no other program has sparse tensors
    for config, weights, notes in paddings(model.config, model.weights):
        if (family := for_gguf(config)) is not None:
            return family, config, weights, notes
    return None, model.config, model.weights, ()


def _matrices(config: ModelConfig) -> list[str]:
    return [s.name for s in tensor_table(config) if s.role not in (Role.NORM, Role.BIAS)]


def _usual_type(weights: Weights) -> DType:
    """The type of most numbers."""
    counts = dict.fromkeys(DType, 0)
    for tensor in weights.values():
        counts[tensor.dtype] += prod(tensor.shape)
    return max(counts, key=lambda dtype: counts[dtype])


def _file_tensors(
    family: Family | None, config: ModelConfig, weights: Weights
) -> list[tuple[str, StoredTensor]]:
    if family is None:
        return list(weights.items())
    turned = paired(family, config, weights)
    held = [
        (name, StoredTensor.from_f32(np.array(values, dtype=np.float32)))
        for name, values in rope_tensors(config).items()
    ]
    return held + [(s.name, join(s, turned)) for s in sources(config, family.gguf_names)]


def paired(
    family: Family, config: ModelConfig, weights: Weights, *, inverse: bool = False
) -> Weights:
    """Returns `weights` with query and key rows in the family's GGUF order, or back."""
    if not family.permuted:
        return weights
    out = dict(weights)
    for i, layer in enumerate(config.layers):
        for part, heads in (("q", layer.n_heads), ("k", layer.n_kv_heads)):
            for name in (f"layers.{i}.attn.{part}.weight", f"layers.{i}.attn.{part}.bias"):
                if name in out:
                    out[name] = pair_rows(out[name], heads, inverse=inverse)
    return out


def _keys(
    family: Family | None, config: ModelConfig, model: ModelFile, languages: tuple[str, ...]
) -> dict[str, Any]:
    record = model.record
    keys: dict[str, Any] = {
        "general.architecture": family.gguf_architecture if family else _OWN,
        "general.type": "model",
        "general.name": record.name if record else "model",
        "general.quantization_version": 2,
        "miudo.schema": _SCHEMA,
    }
    if languages:
        keys["general.languages"] = list(languages)
    if record is not None:
        keys |= record_keys(record)
    if family is not None:
        keys |= family.config_to_gguf(config)
    else:
        keys["miudo.config"] = json.dumps(config.to_json(), separators=(",", ":"))
    keys |= special_keys(config)
    if model.tokenizer is not None:
        keys |= tokenizer_keys(model.tokenizer, config)
        keys[WHOLE_TOKENIZER] = model.tokenizer.to_json().decode()
    else:
        keys["tokenizer.ggml.model"] = "none"
    if model.chat_template is not None:
        keys[CHAT_TEMPLATE] = model.chat_template
    return keys


def read_gguf(
    path: Path, *, ready: Callable[[ModelConfig, Weights], None] | None = None
) -> ModelFile:
    """Returns the model in the GGUF file at `path`, tensors memory-mapped.

    `ready` is called with config and weights, before the tokenizer is read.

    Raises ModelFileError naming key or tensor: unknown architectures and types, sizes that
    disagree, two tokenizers that disagree.
    """
    container = read_container(path)
    if container.text("general.type") == "adapter":
        raise ModelFileError(
            "is an adapter, not a model", where=path, remedy="Give its model, and --adapter"
        )
    architecture = container.text("general.architecture")
    if architecture is None:
        raise ModelFileError("is missing", where=f"{path}: general.architecture")
    try:
        family = None if architecture == _OWN else by_gguf(architecture)
        config = own_config(container) if family is None else family_config(container, family)
    except ModelFileError as error:
        where = f"{path}: {error.where}" if error.where else path
        raise ModelFileError(error.what, where=where, remedy=error.remedy) from error
    if family is None:
        wanted = tuple(Source(spec.name, (spec.name,)) for spec in tensor_table(config))
        given = {**container.tensors, **_sparse_tensors(container, config)}
        weights = canonical_weights(wanted, given, config, path)
    else:
        wanted, factors = sources(config, family.gguf_names), rope_tensors(config)
        stored = {n: t for n, t in container.tensors.items() if n not in factors}
        weights = canonical_weights(wanted, stored, config, path)
        weights = paired(family, config, weights, inverse=True)
    if ready is not None:
        ready(config, weights)
    return ModelFile(
        config=config,
        weights=weights,
        tokenizer=read_tokenizer(container, config),
        chat_template=container.text(CHAT_TEMPLATE),
        record=stored_record(container),
        architecture=architecture,
        path=path,
    )


def _sparse_tensors(container: Container, config: ModelConfig) -> dict[str, StoredTensor]:
    """The tensors of bytes, as what the file says that they are."""
    where = f"{container.path}: {_SPARSE}"
    text = container.text(_SPARSE) or "{}"
    types = parse_object(text.encode(), where)
    shapes = {spec.name: spec.shape for spec in tensor_table(config)}
    known = {str(dtype): dtype for dtype in DType if dtype.sparse}
    if types.keys() != container.plain.keys() or not types.keys() <= shapes.keys():
        odd = sorted(types.keys() ^ container.plain.keys() | types.keys() - shapes.keys())
        raise ModelFileError(f"does not fit the tensors: {', '.join(odd[:5])}", where=where)
    found = {}
    for name, data in container.plain.items():
        if types[name] not in known:
            raise ModelFileError(f"{name} is of the unknown type {types[name]!r:.40}", where=where)
        found[name] = StoredTensor(known[types[name]], shapes[name], data)
        check_sparse(found[name], f"{container.path}: tensor {name}")
    return found


def record_keys(record: Record) -> dict[str, Any]:
    """Returns the keys that hold `record` in a file."""
    keys = {"miudo.record": json.dumps(record.to_json(), separators=(",", ":"))}
    return keys | ({"general.license": record.licence} if record.licence else {})


def stored_record(container: Container) -> Record | None:
    """Returns the record in a file, None without one. Raises ModelFileError for a damaged one."""
    text = container.text("miudo.record")
    if text is None:
        return None
    where = f"{container.path}: miudo.record"
    return Record.from_json(parse_object(text.encode(), where), where=where)
