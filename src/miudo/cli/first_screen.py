"""What a user should know of a model before the first word: size, memory, licence, template.

For: the first screen of a conversation, and `/show` in it.
Not for: everything that is known of a model (`miudo show`).
Read next: `miudo.registry.describe`.
"""

from __future__ import annotations

import math
from typing import Any

from miudo.cli.talk import Talk

__all__ = ["facts", "facts_text"]


def facts(talk: Talk, licence: str | None = None) -> dict[str, Any]:
    """Returns the facts as plain values; memory in bytes.

    `memory_bytes` is what weights and one conversation of the whole context take, `free_bytes`
    what the system would give without swapping. `licence` is what the catalogue says, for a model
    whose record says none.
    """
    import psutil

    from miudo.tensors import parameter_count

    loaded = talk.loaded
    engine, model = loaded.engine, loaded.model
    stored = sum(tensor.size_bytes for tensor in model.weights.values())
    values = sum(math.prod(tensor.shape) for tensor in model.weights.values())
    context = engine.config.max_positions
    weights, cache = getattr(engine, "weight_bytes", stored), 0
    if page := getattr(engine, "page_positions", 0):
        cache = -(-context // page) * getattr(engine, "page_bytes", 0)
    return {
        "model": talk.name,
        "path": str(loaded.path),
        "adapter": loaded.adapter is not None,
        "parameters": parameter_count(model.config),
        "bits_per_weight": 8 * stored / values,
        "context": context,
        "weights_bytes": weights,
        "cache_bytes": cache,
        "memory_bytes": weights + cache,
        "free_bytes": psutil.virtual_memory().available,
        "threads": getattr(engine, "threads", None),
        "isa": getattr(engine, "isa", None),
        "licence": (model.record and model.record.licence) or licence,
        "chat_template": talk.template_from,
    }


def facts_text(known: dict[str, Any]) -> str:
    """Returns `facts` in a few lines."""
    adapter = ", with an adapter" if known["adapter"] else ""
    size = f"{_count(known['parameters'])} parameters at {known['bits_per_weight']:.2f} bits"
    memory = (
        f"{_bytes(known['memory_bytes'])} ({_bytes(known['weights_bytes'])} weights, "
        f"{_bytes(known['cache_bytes'])} for a full context); {_bytes(known['free_bytes'])} free"
    )
    lines = [
        ("model", f"{known['model']}{adapter}"),
        ("size", f"{size}, context {known['context']:,} tokens"),
        ("memory", memory),
        ("runs on", f"{known['threads']} threads, {known['isa']}" if known["isa"] else ""),
        ("licence", known["licence"] or "not stated"),
        ("template", known["chat_template"]),
    ]
    if known["memory_bytes"] > known["free_bytes"]:
        lines.append(("warning", "more memory may be needed than is free; --dtype q4_0 takes less"))
    return "\n".join(f"{label:<9} {text}" for label, text in lines if text)


def _count(number: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return str(number)


def _bytes(number: int) -> str:
    return f"{number / 1e9:.3g} GB" if number >= 10**9 else f"{number / 1e6:.3g} MB"
