"""GGUF files, both ways: weights, tokenizer, template, card and record in one file.

For: the device form of a model; llama.cpp and Ollama run what is written here.
Not for: the container's bytes (`miudo.formats.gguf_reader`, `miudo.formats.gguf_writer`).
Read next: `miudo.families.llama` for names and keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudo.config import ModelConfig
from miudo.errors import ConfigError, ModelFileError
from miudo.families import by_gguf, for_config
from miudo.families.family import Family, Source, sources
from miudo.files import atomic_write
from miudo.formats.blocks import encode, to_f32
from miudo.formats.gguf_reader import ArrayAt, Container, read_container
from miudo.formats.gguf_tokenizer import tokenizer_keys, vocabulary
from miudo.formats.gguf_writer import write_container
from miudo.formats.layout import join, pad_to_uniform, pair_rows, split
from miudo.formats.model_file import ModelFile
from miudo.formats.strict_json import parse_object
from miudo.records import Record
from miudo.tensors import DType, Role, StoredTensor, Weights, check_weights, tensor_table

__all__ = ["GgufReport", "read_gguf", "stored_as", "write_gguf"]

# What no family's keys can say is written under this name, so that other readers refuse it.
_OWN = "miudo"
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class GgufReport:
    """What was written: type by tensor, tensors that did not fit the type asked for, sizes.

    `bits_per_weight` counts all tensors' bytes, scales included, over all parameters.
    """

    dtypes: Mapping[str, DType]
    fallbacks: tuple[str, ...]
    notes: tuple[str, ...]
    bits_per_weight: float
    size_bytes: int


def stored_as(config: ModelConfig, weights: Weights, dtype: DType) -> dict[str, StoredTensor]:
    """Returns `weights` stored as `dtype`; norms and biases stay F32.

    A matrix whose rows do not fit the blocks, or that tolerates no such type, becomes F16.
    Tensors that have the type already are shared.
    """
    chosen: dict[str, StoredTensor] = {}
    for spec in tensor_table(config):
        tensor, wanted = weights[spec.name], dtype
        if spec.role in (Role.NORM, Role.BIAS):
            wanted = DType.F32
        elif dtype.block > 1 and not (spec.lowest is dtype and dtype.fits(spec.shape)):
            wanted = DType.F16
        same = tensor.dtype is wanted
        chosen[spec.name] = tensor if same else encode(to_f32(tensor), wanted)
    return chosen


def write_gguf(path: Path, model: ModelFile, *, dtype: DType | None = None) -> GgufReport:
    """Writes `model` as one GGUF file, atomically, and reports which tensor got which type.

    Without `dtype` every tensor keeps the type it has.
    """
    config, weights, notes = pad_to_uniform(model.config, model.weights)
    if for_config(config) is None:  # padding did not make it one that others know
        config, weights, notes = model.config, model.weights, ()
    check_weights(config, weights)
    if dtype is not None:
        weights = stored_as(config, weights, dtype)
    family = for_config(config)
    tensors = _file_tensors(family, config, weights)
    keys = _keys(family, config, model)
    atomic_write(path, lambda file: write_container(file, keys, tensors))
    parameters = sum(t.data.size * t.dtype.block // t.dtype.block_bytes for t in weights.values())
    return GgufReport(
        dtypes={name: t.dtype for name, t in weights.items()},
        fallbacks=_fallbacks(config, weights, dtype),
        notes=notes,
        bits_per_weight=8 * sum(t.data.size for t in weights.values()) / parameters,
        size_bytes=path.stat().st_size,
    )


def _fallbacks(config: ModelConfig, weights: Weights, dtype: DType | None) -> tuple[str, ...]:
    matrices = [s.name for s in tensor_table(config) if s.role not in (Role.NORM, Role.BIAS)]
    return tuple(n for n in matrices if dtype is not None and weights[n].dtype is not dtype)


def _file_tensors(
    family: Family | None, config: ModelConfig, weights: Weights
) -> list[tuple[str, StoredTensor]]:
    if family is None:
        return list(weights.items())
    paired = _paired(family, config, weights)
    return [(s.name, join(s, paired)) for s in sources(config, family.gguf_names)]


def _paired(
    family: Family, config: ModelConfig, weights: Weights, *, inverse: bool = False
) -> Weights:
    if not family.permuted:
        return weights
    out = dict(weights)
    for i, layer in enumerate(config.layers):
        for part, heads in (("q", layer.n_heads), ("k", layer.n_kv_heads)):
            for name in (f"layers.{i}.attn.{part}.weight", f"layers.{i}.attn.{part}.bias"):
                if name in out:
                    out[name] = pair_rows(out[name], heads, inverse=inverse)
    return out


def _keys(family: Family | None, config: ModelConfig, model: ModelFile) -> dict[str, Any]:
    record = model.record
    keys: dict[str, Any] = {
        "general.architecture": family.gguf_architecture if family else _OWN,
        "general.name": record.name if record else "model",
        "general.quantization_version": 2,
        "miudo.schema": _SCHEMA,
        "miudo.config": json.dumps(config.to_json(), separators=(",", ":")),
    }
    if record is not None:
        keys["miudo.record"] = json.dumps(record.to_json(), separators=(",", ":"))
        if record.licence:
            keys["general.license"] = record.licence
    if family is not None:
        keys |= family.config_to_gguf(config)
    if model.tokenizer_json is not None:
        keys |= tokenizer_keys(model.tokenizer_json, config)
        keys["tokenizer.huggingface.json"] = model.tokenizer_json.decode()
    else:
        keys["tokenizer.ggml.model"] = "none"
    if model.chat_template is not None:
        keys["tokenizer.chat_template"] = model.chat_template
    return keys


def read_gguf(path: Path) -> ModelFile:
    """Returns the model in the GGUF file at `path`, tensors memory-mapped.

    Raises ModelFileError naming key or tensor: unknown architectures and types, sizes that
    disagree, two tokenizers that disagree.
    """
    container = read_container(path)
    architecture = container.keys.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelFileError("is missing", where=f"{path}: general.architecture")
    family = None if architecture == _OWN else by_gguf(architecture)
    config = _config(container, family)
    if family is None:
        weights: Weights = container.tensors
    else:
        weights = _canonical(container, family, config)
    check_weights(config, weights, where=path)
    return ModelFile(
        config=config,
        weights={spec.name: weights[spec.name] for spec in tensor_table(config)},
        tokenizer_json=_tokenizer(container),
        chat_template=_text_key(container, "tokenizer.chat_template"),
        record=_record(container),
        architecture=architecture,
        path=path,
    )


def _config(container: Container, family: Family | None) -> ModelConfig:
    own = _text_key(container, "miudo.config")
    try:
        said = None if own is None else ModelConfig.from_json(parse_object(own.encode(), "miudo"))
        if family is None:
            return _said(said, container)
        read = family.config_from_gguf(
            dict(container.keys) | _common(container), frozenset(container.tensors)
        )
    except KeyError as error:
        raise ModelFileError(f"key {error} is missing", where=container.path) from error
    except (ConfigError, TypeError, ZeroDivisionError) as error:
        raise ModelFileError(f"keys describe no model ({error})", where=container.path) from error
    if said is None:
        return read
    if said.layers != read.layers or said.d_model != read.d_model:
        raise ModelFileError("miudo.config and the other keys disagree", where=container.path)
    return said


def _said(said: ModelConfig | None, container: Container) -> ModelConfig:
    if said is None:
        raise ModelFileError("is missing", where=f"{container.path}: miudo.config")
    return said


def _common(container: Container) -> dict[str, Any]:
    """What all families need and other programs write in several ways."""
    keys, ids = container.keys, "tokenizer.ggml."
    words = keys.get(ids + "tokens")
    embed = container.tensors.get("token_embd.weight")
    eos = keys.get(ids + "eos_token_id")
    vocab = (
        embed.shape[0] if embed is not None else words.count if isinstance(words, ArrayAt) else 0
    )
    return {
        "vocab_size": vocab,
        "bos_id": keys.get(ids + "bos_token_id"),
        "eos_ids": () if eos is None else (eos,),
        "pad_id": keys.get(ids + "padding_token_id"),
    }


def _canonical(container: Container, family: Family, config: ModelConfig) -> Weights:
    wanted: tuple[Source, ...] = sources(config, family.gguf_names)
    names = {s.name for s in wanted}
    # Rotary tables that some writers add say nothing that the keys do not.
    extra = sorted(container.tensors.keys() - names - {"rope_freqs.weight"})
    wrong = [f"{n} is missing" for n in sorted(names - container.tensors.keys())]
    wrong += [f"{n} is unknown" for n in extra]
    shapes = {spec.name: spec.shape for spec in tensor_table(config)}
    weights: dict[str, StoredTensor] = {}
    for source in wanted:
        if source.name in container.tensors:
            try:
                weights.update(split(source, container.tensors[source.name], shapes))
            except ModelFileError as error:
                wrong.append(f"{source.name} {error.what}")
    if wrong:
        raise ModelFileError("; ".join(wrong), where=container.path)
    return _paired(family, config, weights, inverse=True)


def _text_key(container: Container, key: str) -> str | None:
    value = container.keys.get(key)
    if value is not None and not isinstance(value, str):
        raise ModelFileError("is no text", where=f"{container.path}: {key}")
    return value


def _tokenizer(container: Container) -> bytes | None:
    whole = _text_key(container, "tokenizer.huggingface.json")
    if whole is None:
        return None
    if "tokenizer.ggml.tokens" in container.keys:
        words = container.strings("tokenizer.ggml.tokens")
        parse_object(whole.encode(), f"{container.path}: tokenizer.huggingface.json")
        texts = vocabulary(whole.encode())
        odd = next((i for i, t in texts.items() if not 0 <= i < len(words) or words[i] != t), None)
        if odd is not None:
            raise ModelFileError(
                f"its two tokenizers disagree about id {odd}",
                where=container.path,
                remedy="Write the file again from its source",
            )
    return whole.encode()


def _record(container: Container) -> Record | None:
    text = _text_key(container, "miudo.record")
    where = f"{container.path}: miudo.record"
    return (
        None if text is None else Record.from_json(parse_object(text.encode(), where), where=where)
    )
