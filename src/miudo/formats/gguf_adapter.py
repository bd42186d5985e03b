"""LoRA adapters as GGUF files, both ways, as llama.cpp has them.

For: one small file that llama.cpp and Ollama lay over the model it was made for.
Not for: PEFT folders (`miudo.formats.peft`), running (`miudo.engine.native`).
Read next: `miudo.formats.gguf`, for the model's own file.

A matrix NAME has the tensors NAME.lora_a [rank, in] and NAME.lora_b [out, rank]; what is added
is alpha / rank times their product, and the product itself where alpha is 0 or absent. Rows of
lora_b lie as the rows of the matrix do: in pairs for queries and keys of "llama".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from miudo.adapter import Adapter, LowRank, check_adapter
from miudo.config import ModelConfig
from miudo.errors import ModelFileError
from miudo.families import by_gguf, for_gguf, gguf_misfit
from miudo.families.family import Family
from miudo.families.places import Source, sources
from miudo.files import atomic_write
from miudo.formats.blocks import to_f32
from miudo.formats.gguf import CHAT_TEMPLATE, paired, record_keys, stored_record
from miudo.formats.gguf_reader import Container, read_container
from miudo.formats.gguf_writer import write_container
from miudo.formats.layout import split
from miudo.limits import LIMITS
from miudo.protocol import FloatArray
from miudo.records import Record
from miudo.tensors import Role, StoredTensor, tensor_table

__all__ = ["GgufAdapter", "read_gguf_adapter", "scan_gguf_adapter", "write_gguf_adapter"]

_OWN = "miudo"
_SCHEMA = 1
_DOWN, _UP = ".lora_a", ".lora_b"
# alpha is stored as float32: a factor nearer to 1 than its rounding is 1.
_SAME_SCALE = 1e-6


@dataclass(frozen=True, slots=True)
class GgufAdapter:
    """An adapter's file as it lies: pairs (lora_a, lora_b) by the file's name of the matrix."""

    architecture: str
    alpha: float
    pairs: Mapping[str, tuple[StoredTensor, StoredTensor]]
    base: str | None
    tokenizer: str | None
    record: Record | None
    chat_template: str | None

    def scale(self, rank: int) -> float:
        """Returns what the product of a pair of that rank is multiplied with."""
        return self.alpha / rank if self.alpha else 1.0


def scan_gguf_adapter(path: Path) -> GgufAdapter:
    """Returns what the file at `path` says by itself, tensors memory-mapped.

    Raises ModelFileError for a file that is no LoRA adapter, a tensor without its other half,
    a pair that shares no rank.
    """
    container = read_container(path)
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        if (found := container.text(key)) != wanted:
            raise ModelFileError(f"is {found!r}, not {wanted!r}", where=f"{path}: {key}")
    # It would work from these ids on only, which no engine here does.
    if "adapter.alora.invocation_tokens" in container.keys:
        raise ModelFileError(
            "is an adapter that its own tokens switch on",
            where=f"{path}: adapter.alora.invocation_tokens",
            remedy="This variant is not supported",
        )
    alpha = container.keys.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float) or not np.isfinite(alpha):
        raise ModelFileError(f"is {alpha!r:.60}, no number", where=f"{path}: adapter.lora.alpha")
    return GgufAdapter(
        architecture=container.text("general.architecture") or "",
        alpha=alpha,
        pairs=_pairs(container),
        base=container.text("miudo.base"),
        tokenizer=container.text("miudo.tokenizer"),
        record=stored_record(container),
        chat_template=container.text(CHAT_TEMPLATE),
    )


def _pairs(container: Container) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    found: dict[str, tuple[StoredTensor, StoredTensor]] = {}
    for name, tensor in container.tensors.items():
        where = f"{container.path}: tensor {name}"
        matrix, _, half = name.rpartition(".")
        other = container.tensors.get(matrix + (_UP if half == "lora_a" else _DOWN))
        if half not in ("lora_a", "lora_b"):
            raise ModelFileError("is no part of an adapter", where=where)
        if other is None:
            raise ModelFileError("has no other half", where=where)
        if half == "lora_b":
            continue
        if len(tensor.shape) != 2 or len(other.shape) != 2 or other.shape[1] != tensor.shape[0]:
            raise ModelFileError(
                f"is {list(tensor.shape)} and its other half {list(other.shape)}: no shared rank",
                where=where,
            )
        if tensor.shape[0] > LIMITS.adapter_rank:
            raise ModelFileError(
                f"has rank {tensor.shape[0]}, allowed {LIMITS.adapter_rank}", where=where
            )
        found[matrix] = (tensor, other)
    return found


def read_gguf_adapter(path: Path, config: ModelConfig) -> Adapter:
    """Returns the adapter in the file at `path`, for a model of `config`.

    Raises ModelFileError for what `scan_gguf_adapter` refuses, another architecture, and
    matrices that the model does not have.
    """
    held = scan_gguf_adapter(path)
    family = _family_of(held, config, path)
    places = _matrices(config, family)
    shapes = {spec.name: spec.shape for spec in tensor_table(config)}
    downs: dict[str, FloatArray] = {}
    ups: dict[str, StoredTensor] = {}
    for name, (down, up) in held.pairs.items():
        if name not in places:
            raise ModelFileError(
                f"{name} is no matrix of this model's blocks",
                where=path,
                remedy="Use it with its own base model",
            )
        rank = down.shape[0]
        parts = {target: (shapes[target][0], rank) for target in places[name].targets}
        try:
            found = dict(split(places[name], StoredTensor.from_f32(to_f32(up)), parts))
        except ModelFileError as error:
            raise ModelFileError(
                error.what,
                where=f"{path}: tensor {name}{_UP}",
                remedy="Use it with its own base model",
            ) from error
        ups |= found
        downs |= dict.fromkeys(found, np.array(to_f32(down)))
    straight = ups if family is None else paired(family, config, ups, inverse=True)
    made = {
        target: LowRank(down, np.array(to_f32(straight[target])), held.scale(down.shape[0]))
        for target, down in downs.items()
    }
    adapter = Adapter(made, held.base, held.tokenizer)
    check_adapter(config, adapter, where=path)
    return adapter


def _family_of(held: GgufAdapter, config: ModelConfig, path: Path) -> Family | None:
    if held.architecture == _OWN:
        return None
    try:
        family = by_gguf(held.architecture)
    except ModelFileError as error:
        raise ModelFileError(error.what, where=f"{path}: {error.where}") from error
    if why := gguf_misfit(family, config):
        raise ModelFileError(
            f"is for the architecture {held.architecture}, the model is another: {why}",
            where=path,
            remedy="Use it with its own base model",
        )
    return family


def _matrices(config: ModelConfig, family: Family | None) -> dict[str, Source]:
    """The blocks' matrices by their names in files."""
    specs = tensor_table(config)
    blocks = {s.name for s in specs if s.role in (Role.ATTENTION, Role.MLP)}
    named = (
        tuple(Source(s.name, (s.name,)) for s in specs)
        if family is None
        else sources(config, family.gguf_names)
    )
    return {source.name: source for source in named if blocks.issuperset(source.targets)}


def write_gguf_adapter(
    path: Path,
    config: ModelConfig,
    adapter: Adapter,
    *,
    name: str = "adapter",
    record: Record | None = None,
    chat_template: str | None = None,
) -> tuple[str, ...]:
    """Writes `adapter`, for a model of `config`, as one float32 file; returns notes.

    `record` and the `chat_template` that it was trained through, if any, go into keys that other
    programs pass over.
    A file has one alpha: where parts have several, their `up` is multiplied to make up for it.
    Queries, keys and values that lie in one matrix of the file share a pair of higher rank.
    Raises ModelFileError for an adapter that does not fit `config`.
    """
    check_adapter(config, adapter)
    family = for_gguf(config)
    ups = {n: StoredTensor.from_f32(part.up) for n, part in adapter.parts.items()}
    turned = ups if family is None else paired(family, config, ups)
    parts = {
        n: LowRank(part.down, to_f32(turned[n]), part.scale) for n, part in adapter.parts.items()
    }
    rows = {spec.name: spec.shape[0] for spec in tensor_table(config)}
    joined = {
        source.name: _joined(
            [parts.get(t) for t in source.targets], [rows[t] for t in source.targets]
        )
        for source in _matrices(config, family).values()
        if any(t in parts for t in source.targets)
    }
    alphas = [part.scale * part.rank for part in joined.values()]
    alpha = float(np.float32(next((a for a in alphas if a), 1.0)))
    tensors, changed = [], 0
    for matrix, part in joined.items():
        factor = part.scale * part.rank / alpha
        same = abs(factor - 1) < _SAME_SCALE
        changed += not same
        up = part.up if same else part.up * np.float32(factor)
        tensors.append((matrix + _DOWN, StoredTensor.from_f32(part.down)))
        tensors.append((matrix + _UP, StoredTensor.from_f32(up)))
    keys: dict[str, Any] = {
        "general.architecture": family.gguf_architecture if family else _OWN,
        "general.type": "adapter",
        "general.name": name,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
        "miudo.schema": _SCHEMA,
    }
    keys |= {"miudo.base": adapter.base} if adapter.base else {}
    keys |= {"miudo.tokenizer": adapter.tokenizer} if adapter.tokenizer else {}
    keys |= record_keys(record) if record else {}
    keys |= {CHAT_TEMPLATE: chat_template} if chat_template else {}
    atomic_write(path, lambda file: write_container(file, keys, tensors))
    return (f"{changed} matrices scaled to share one alpha",) if changed else ()


def _joined(parts: list[LowRank | None], rows: list[int]) -> LowRank:
    """One pair for the matrix that holds the given ones below each other; None adds nothing."""
    held = [part for part in parts if part is not None]
    first = held[0]
    alike = all(p.scale == first.scale and np.array_equal(p.down, first.down) for p in held)
    if alike:
        stacked = [
            np.zeros((n, first.rank), np.float32) if p is None else p.up
            for p, n in zip(parts, rows, strict=True)
        ]
        return LowRank(first.down, np.concatenate(stacked), first.scale)
    # Each keeps its own directions: the blocks of `up` lie along a diagonal.
    up = np.zeros((sum(rows), sum(p.rank for p in held)), np.float32)
    row = column = 0
    for part, n in zip(parts, rows, strict=True):
        if part is not None:
            up[row : row + n, column : column + part.rank] = part.up * np.float32(part.scale)
            column += part.rank
        row += n
    return LowRank(np.concatenate([p.down for p in held]), up, 1.0)
