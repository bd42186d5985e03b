"""One model told from its file: shape, size, number types, tokenizer, record, lineage.

For: `miudo show`, pages and cards.
Not for: what a model can do (`miudo.evaluate`).
Read next: `miudo.records`, `miudo.formats`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

from miudo.config import LayerConfig, ModelConfig
from miudo.formats import ModelFile
from miudo.records import Measurement, Record
from miudo.tensors import parameter_count

__all__ = ["describe", "description_text", "lineage_lines"]

_NOTES = 3
"""Notes of a record that are printed: `prepare` makes one for each text that it drops."""


def describe(model: ModelFile) -> dict[str, Any]:
    """Returns what is known of `model` as plain JSON values."""
    config, record = model.config, model.record
    values = json.loads(json.dumps(config.to_json()))  # enumerations and tuples become plain
    layers = values.pop("layers")
    stored = [(t.dtype, math.prod(t.shape), t.size_bytes) for t in model.weights.values()]
    total_values = sum(n for _, n, _ in stored)
    total_bytes = sum(n for _, _, n in stored)
    return {
        "schema": 1,
        "path": None if model.path is None else str(model.path),
        "architecture": model.architecture,
        "parameters": parameter_count(config),
        "parameters_inside": parameter_count(config, embeddings=False),
        "weights_bytes": total_bytes,
        "bits_per_weight": 8 * total_bytes / total_values,
        "dtypes": _dtypes(stored),
        "config": values,
        "layers": layers,
        "tokenizer": _tokenizer(model),
        "chat_template": model.chat_template,
        "licence": None if record is None else record.licence,
        "record": None if record is None else record.to_json(),
    }


def description_text(model: ModelFile) -> str:
    """Returns `describe` for people, the lineage as a tree."""
    facts = describe(model)
    dtypes = ", ".join(f"{name} ({d['tensors']} tensors)" for name, d in facts["dtypes"].items())
    tokenizer = facts["tokenizer"]
    lines = [
        _line("model", str(model.path)),
        _line("architecture", model.architecture),
        _line("parameters", f"{facts['parameters']:,} ({facts['parameters_inside']:,} inside)"),
        _line("weights", f"{facts['weights_bytes'] / 1e6:,.2f} MB, {dtypes}"),
        _line("bits per weight", f"{facts['bits_per_weight']:.2f}"),
        *_config_lines(model.config),
        _line("tokenizer", "none" if tokenizer is None else _tokenizer_text(tokenizer)),
        _line("chat template", "none" if model.chat_template is None else "yes"),
        _line("licence", facts["licence"] or "not stated"),
    ]
    if model.record is None:
        return "\n".join([*lines, _line("record", "none")])
    return "\n".join([*lines, "", "lineage", *lineage_lines(model.record)])


def lineage_lines(record: Record) -> list[str]:
    """Returns a tree, a line or more a record: newest first, what it was made from below."""
    return list(_tree(record, "", ""))


def _tree(record: Record, first: str, rest: str) -> Iterator[str]:
    seed = "" if record.seed is None else f", seed {record.seed}"
    yield f"{first}{record.name} - {record.verb}, {record.created}{seed}"
    inside = rest + ("│  " if record.parents else "   ")
    for measured in record.measurements:
        yield f"{inside}{_measurement(measured)}"
    for item in record.inputs:
        yield f"{inside}from {item.role} {item.name} {item.sha256[:12]}"
    for note in record.notes[:_NOTES]:
        yield f"{inside}note: {note}"
    if len(record.notes) > _NOTES:
        yield f"{inside}and {len(record.notes) - _NOTES} notes more (--json has them)"
    for i, parent in enumerate(record.parents):
        last = i == len(record.parents) - 1
        yield from _tree(
            parent, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  ")
        )


def _measurement(m: Measurement) -> str:
    mark = "~" if m.estimate else ""
    value = f"{m.value:,.0f}" if m.value == int(m.value) else f"{m.value:,.6g}"
    unit = "" if m.unit == "1" else f" {m.unit}"  # a count has no unit
    return f"{m.name} {mark}{value}{unit} ({m.method})"


def _config_lines(config: ModelConfig) -> list[str]:
    groups = [(layer, len(list(run))) for layer, run in itertools.groupby(config.layers)]
    kind = f"{config.norm} norm, {config.position}, {config.mlp} {config.activation}"
    shape = f"{config.n_layers} layers, d_model {config.d_model}, vocabulary {config.vocab_size:,}"
    lines = [_line("shape", shape), _line("kind", kind)]
    lines += [_line("layers", f"{count} x {_layer(layer)}") for layer, count in groups]
    begin, pad = ("none" if i is None else i for i in (config.bos_id, config.pad_id))
    ends = ", ".join(map(str, config.eos_ids)) or "none"
    tied = "tied" if config.tie_embeddings else "own"
    lines.append(_line("positions", f"{config.max_positions:,}"))
    lines.append(_line("ids", f"bos {begin}, eos {ends}, pad {pad}; head {tied}"))
    return lines


def _layer(layer: LayerConfig) -> str:
    window = "" if layer.window is None else f", window {layer.window}"
    heads = f"{layer.n_heads} heads of {layer.head_dim}, {layer.n_kv_heads} for keys"
    return f"{heads}, d_ff {layer.d_ff}{window}"


def _dtypes(stored: list[tuple[Any, int, int]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for dtype, values, size in stored:
        entry = found.setdefault(str(dtype), {"tensors": 0, "values": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["values"] += values
        entry["bytes"] += size
    return found


def _tokenizer(model: ModelFile) -> dict[str, Any] | None:
    if model.tokenizer is None:
        return None
    from miudo.text.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(model.tokenizer)
    kind = model.tokenizer.values["model"].get("type", "BPE")
    return {
        "kind": kind,
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "special_ids": dict(tokenizer.special_ids),
    }


def _tokenizer_text(tokenizer: dict[str, Any]) -> str:
    size, print_ = tokenizer["vocab_size"], tokenizer["fingerprint"][:12]
    return f"{tokenizer['kind']}, {size:,} ids, fingerprint {print_}"


def _line(label: str, value: str) -> str:
    return f"{label:<16} {value}"
