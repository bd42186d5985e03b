"""Hugging Face folders, both ways: config.json, safetensors, tokenizer, template, record.

For: the working form of a model; `transformers`, vLLM and PEFT load what is written here.
Not for: `pytorch_model.bin`, which is refused: it is a pickle.
Read next: `miudo.families.llama` for the names, `miudo.formats.safetensors` for the bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from miudo.errors import MissingError, ModelFileError
from miudo.families import by_hf_config, for_config
from miudo.families.family import Family, Source, sources
from miudo.files import atomic_folder, open_regular, resolve_under, sha256_file, write_json
from miudo.formats.blocks import encode, to_f32
from miudo.formats.layout import join, pad_to_uniform, split
from miudo.formats.model_file import ModelFile
from miudo.formats.safetensors import read_safetensors, write_safetensors
from miudo.formats.strict_json import parse_object, read_object
from miudo.limits import LIMITS
from miudo.records import Record
from miudo.tensors import DType, StoredTensor, Weights, tensor_table

__all__ = ["read_folder", "sources_of", "write_folder"]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def read_folder(folder: Path) -> ModelFile:
    """Returns the model in `folder`, tensors memory-mapped in miudo's layout.

    Raises MissingError or ModelFileError listing every tensor that is missing, foreign or
    misshapen. Nothing outside `folder` is read and no key that names code is followed.
    """
    if not (folder / "config.json").exists():
        raise MissingError(
            "has no config.json", where=folder, remedy="Name the folder that holds the model"
        )
    values = read_object(folder / "config.json", 1 << 24)
    if "quantization_config" in values:
        raise ModelFileError(
            f"is quantised as {str(values['quantization_config'])[:80]}",
            where=folder / "config.json",
            remedy="Open the unquantised model, or its GGUF file",
        )
    family = by_hf_config(values)
    config = family.config_from_hf(values)
    stored = _normalised(_read_shards(folder), family)
    if "lm_head.weight" in stored and not values.get("tie_word_embeddings", False):
        config = dataclasses.replace(config, tie_embeddings=False)
    return ModelFile(
        config=config,
        weights=_canonical(family, sources_of(family, config), stored, config, folder),
        tokenizer_json=_optional_bytes(folder / "tokenizer.json"),
        chat_template=_template(folder),
        record=Record.read(folder),
        architecture=family.architectures[0],
        path=folder,
    )


def sources_of(family: Family, config: Any) -> tuple[Source, ...]:
    """Returns what a folder of `family` holds for `config`."""
    return sources(config, family.hf_names, family.hf_transposed)


def _read_shards(folder: Path) -> dict[str, StoredTensor]:
    if (folder / _WEIGHTS).exists():
        return read_safetensors(resolve_under(folder, _WEIGHTS))
    if not (folder / _INDEX).exists():
        pickled = next(folder.glob("*.bin"), None)
        detail = f", only {pickled.name}, a pickle" if pickled else ""
        raise MissingError(f"has no {_WEIGHTS}{detail}", where=folder)
    index = read_object(folder / _INDEX)
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
        raise ModelFileError("weight_map is no map of names", where=folder / _INDEX)
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(listed.values())):
        tensors = read_safetensors(resolve_under(folder, shard))
        wanted = {name for name, file in listed.items() if file == shard}
        if tensors.keys() != wanted:
            odd = sorted(tensors.keys() ^ wanted)
            raise ModelFileError(
                f"holds other tensors than the index says: {', '.join(odd[:5])}",
                where=folder / shard,
                remedy="Shards of different saves were mixed; fetch them again",
            )
        found |= tensors
    return found


def _normalised(stored: Mapping[str, StoredTensor], family: Family) -> dict[str, StoredTensor]:
    """With the family's prefix, and without buffers that mean nothing."""
    kept = {n: t for n, t in stored.items() if not n.endswith(family.hf_ignored or ("\0",))}
    head = "lm_head."
    if any(n.startswith(family.hf_prefix) for n in kept):
        return kept
    return {n if n.startswith(head) else family.hf_prefix + n: t for n, t in kept.items()}


def _canonical(
    family: Family,
    wanted: tuple[Source, ...],
    stored: Mapping[str, StoredTensor],
    config: Any,
    folder: Path,
) -> Weights:
    names = {source.name for source in wanted}
    # A tied model may carry the head all the same; the token table is what counts.
    extra = sorted(n for n in stored if n not in names and n != "lm_head.weight")
    wrong = [f"{n} is missing" for n in sorted(names) if n not in stored]
    wrong += [f"{n} is unknown" for n in extra]
    shapes = {spec.name: spec.shape for spec in tensor_table(config)}
    weights: dict[str, StoredTensor] = {}
    for source in wanted:
        if source.name in stored:
            try:
                weights.update(split(source, stored[source.name], shapes))
            except ModelFileError as error:
                wrong.append(f"{source.name} {error.what}")
    if wrong:
        raise ModelFileError(
            "; ".join(wrong), where=folder, remedy="Config and weights must be of one model"
        )
    return {name: weights[name] for name in shapes}


def _optional_bytes(path: Path) -> bytes | None:
    if not path.exists():
        return None
    with open_regular(path) as file:
        data = file.read(LIMITS.json_bytes + 1)
    if len(data) > LIMITS.json_bytes:
        raise ModelFileError(f"larger than {LIMITS.json_bytes} bytes", where=path)
    return data


def _template(folder: Path) -> str | None:
    alone = _optional_bytes(folder / "chat_template.jinja")
    if alone is not None:
        text: Any = alone.decode("utf-8", errors="replace")
    else:
        data = _optional_bytes(folder / "tokenizer_config.json")
        text = None if data is None else parse_object(data, folder).get("chat_template")
    if isinstance(text, list):  # several named templates: the default one
        named = {t.get("name"): t.get("template") for t in text if isinstance(t, dict)}
        text = named.get("default")
    if text is not None and (not isinstance(text, str) or len(text) > LIMITS.template_bytes):
        raise ModelFileError("chat template is no text of a sane size", where=folder)
    return text


def write_folder(path: Path, model: ModelFile, *, dtype: DType = DType.F32) -> tuple[str, ...]:
    """Writes `model` as a folder that `transformers` loads; returns notes on what was adapted.

    Unequal feed-forward widths are padded with zeros to the widest, which is exact. Raises
    ModelFileError if no family's files can say what the config says, or for a block dtype.
    The folder appears whole or not at all.
    """
    if dtype.block != 1:
        raise ModelFileError(f"a folder cannot hold {dtype}", where=path, remedy="Export to GGUF")
    config, weights, notes = pad_to_uniform(model.config, model.weights)
    family = for_config(config)
    if family is None:
        raise ModelFileError(
            "no family's config.json can describe this model",
            where=path,
            remedy="Export to GGUF: miudo reads it under the architecture 'miudo'",
        )
    with atomic_folder(path) as folder:
        values = family.config_to_hf(config) | {"torch_dtype": _torch_name(dtype)}
        write_json(folder / "config.json", values)
        with (folder / _WEIGHTS).open("xb") as file:
            write_safetensors(file, _hf_tensors(family, config, weights, dtype))
        _write_text_side(folder, model, values)
        if model.record is not None:
            outputs = {p.name: sha256_file(p) for p in sorted(folder.iterdir())}
            dataclasses.replace(model.record, outputs=outputs).write(folder)
    return notes


def _hf_tensors(
    family: Family, config: Any, weights: Weights, dtype: DType
) -> Iterator[tuple[str, StoredTensor]]:
    for source in sources_of(family, config):
        parts = {
            t: weights[t] if weights[t].dtype is dtype else encode(to_f32(weights[t]), dtype)
            for t in source.targets
        }
        yield source.name, join(source, parts)


def _torch_name(dtype: DType) -> str:
    return {DType.F32: "float32", DType.F16: "float16", DType.BF16: "bfloat16"}[dtype]


def _write_text_side(folder: Path, model: ModelFile, values: Mapping[str, Any]) -> None:
    ids = {k: values[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    known = {k: v for k, v in ids.items() if v is not None}
    write_json(folder / "generation_config.json", known)
    if model.tokenizer_json is None:
        return
    (folder / "tokenizer.json").write_bytes(model.tokenizer_json)
    side: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_positions,
        "clean_up_tokenization_spaces": False,
    }
    side |= _token_texts(model.tokenizer_json, known)
    if model.chat_template is not None:
        side["chat_template"] = model.chat_template
    write_json(folder / "tokenizer_config.json", side)


def _token_texts(tokenizer_json: bytes, ids: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and its like, as the tokenizer spells the ids."""
    added = json.loads(tokenizer_json).get("added_tokens", [])
    text = {t["id"]: t["content"] for t in added}
    firsts = {k: v[0] if isinstance(v, list) else v for k, v in ids.items()}
    return {k.removesuffix("_id"): text[v] for k, v in firsts.items() if v in text}
