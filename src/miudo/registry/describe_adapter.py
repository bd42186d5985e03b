"""One LoRA adapter told from its file: rank, matrices, size, the model it was made for.

For: `miudo show` on an adapter, without its model.
Not for: laying it over a model (`miudo.formats.adapter.open_adapter`).
Read next: `miudo.formats.gguf_adapter`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from miudo.errors import ModelFileError
from miudo.formats.adapter import adapter_record, adapter_template
from miudo.formats.gguf_adapter import scan_gguf_adapter
from miudo.formats.peft import PEFT_CONFIG, peft_fingerprints
from miudo.formats.safetensors import read_safetensors
from miudo.registry.describe import lineage_lines
from miudo.strict_json import read_object
from miudo.tensors import StoredTensor

__all__ = ["adapter_text", "describe_adapter"]

_PEFT_DOWN, _PEFT_UP = ".lora_A.weight", ".lora_B.weight"
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class _Found:
    form: str
    alpha: float | None
    pairs: dict[str, tuple[StoredTensor, StoredTensor]]
    base: str | None
    tokenizer: str | None


def describe_adapter(path: Path) -> dict[str, Any]:
    """Returns what the adapter at `path` says by itself, as plain JSON values.

    `matrices` maps names as the file has them to [out, in] and rank. Raises ModelFileError for
    what is no adapter.
    """
    found = _peft(path) if path.is_dir() else _gguf(path)
    record = adapter_record(path)
    halves = [half for pair in found.pairs.values() for half in pair]
    return {
        "schema": 1,
        "path": str(path),
        "kind": "adapter",
        "form": found.form,
        "ranks": sorted({down.shape[0] for down, _ in found.pairs.values()}),
        "alpha": found.alpha,
        "parameters": sum(prod(half.shape) for half in halves),
        "weights_bytes": sum(half.data.nbytes for half in halves),
        "matrices": {
            name: {"shape": [up.shape[0], down.shape[1]], "rank": down.shape[0]}
            for name, (down, up) in found.pairs.items()
        },
        "base": found.base,
        "tokenizer": found.tokenizer,
        "chat_template": adapter_template(path),
        "licence": None if record is None else record.licence,
        "record": None if record is None else record.to_json(),
    }


def adapter_text(path: Path) -> str:
    """Returns `describe_adapter` for people: a line for each kind of matrix, the lineage a tree."""
    facts = describe_adapter(path)
    ranks = ", ".join(map(str, facts["ranks"])) or "none"
    rows = [
        ("adapter", facts["path"]),
        ("form", facts["form"]),
        ("rank", ranks),
        ("alpha", "not stated" if facts["alpha"] is None else f"{facts['alpha']:g}"),
        ("parameters", f"{facts['parameters']:,}"),
        ("weights", f"{facts['weights_bytes'] / 1e6:,.2f} MB"),
        *(("corrects", line) for line in _kinds(list(facts["matrices"]))),
        ("base model", facts["base"] or "not stated"),
        ("tokenizer", facts["tokenizer"] or "not stated"),
        ("chat template", "the model's" if facts["chat_template"] is None else "its own"),
        ("licence", facts["licence"] or "not stated"),
    ]
    record = adapter_record(path)
    if record is None:
        rows.append(("record", "none"))
    lines = [f"{label:<16} {value}" for label, value in rows]
    return "\n".join([*lines, *(["", "lineage", *lineage_lines(record)] if record else [])])


def _kinds(names: list[str]) -> Iterator[str]:
    """Yields "blk.*.attn_q.weight x 4" for matrices that differ in their layer only."""
    counts: dict[str, int] = {}
    for name in names:
        kind = ".".join("*" if part.isdecimal() else part for part in name.split("."))
        counts[kind] = counts.get(kind, 0) + 1
    for kind, count in counts.items():
        yield f"{kind} x {count}"


def _gguf(path: Path) -> _Found:
    held = scan_gguf_adapter(path)
    form = f"GGUF, architecture {held.architecture}"
    return _Found(form, held.alpha or None, dict(held.pairs), held.base, held.tokenizer)


def _peft(folder: Path) -> _Found:
    config = read_object(folder / PEFT_CONFIG)
    path = folder / "adapter_model.safetensors"
    tensors = read_safetensors(path)
    pairs = {}
    for name, down in tensors.items():
        if name.endswith(_PEFT_DOWN):
            matrix = name.removesuffix(_PEFT_DOWN)
            up = tensors.get(matrix + _PEFT_UP)
            if up is None or len(down.shape) != 2 or len(up.shape) != 2:
                raise ModelFileError("has no other half", where=f"{path}: tensor {name}")
            pairs[matrix.removeprefix(_PEFT_PREFIX)] = (down, up)
    alpha = config.get("lora_alpha")
    number = float(alpha) if isinstance(alpha, int | float) else None
    return _Found("PEFT folder", number, pairs, *peft_fingerprints(folder))
