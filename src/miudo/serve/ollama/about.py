"""`/api/version`, `/api/tags`, `/api/show` and `/api/ps`: what is served.

For: a model's facts in Ollama's names.
Not for: finding the facts (`miudo.registry.describe`).
Read next: `miudo.registry.describe`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from miudo import __version__
from miudo.engine.native import NativeEngine
from miudo.files import sha256_file
from miudo.registry.describe import describe
from miudo.serve.hosted import Hosted
from miudo.serve.house import House

__all__ = ["model_facts", "open_models", "open_tags", "version"]

_NEVER = "9999-12-31T23:59:59Z"


def version() -> dict[str, Any]:
    """Returns miudo's version."""
    return {"version": __version__}


async def open_tags(house: House) -> dict[str, Any]:
    """Returns an entry for each model. Its file is hashed once, beside the event loop."""
    return {"models": [await _entry(hosted) for hosted in house.models]}


async def open_models(house: House) -> dict[str, Any]:
    """Returns the models in memory, and until when without a request."""
    entries = []
    for hosted in house.models:
        engine, left = hosted.loaded.engine, house.idle_left_s(hosted)
        held = (
            engine.weight_bytes + engine.cache_bytes_used if isinstance(engine, NativeEngine) else 0
        )
        running = {
            "size": held,
            "size_vram": 0,
            "expires_at": _NEVER if left is None else _shown(time.time() + left),
            "context_length": hosted.context,
        }
        entries.append(await _entry(hosted) | running)
    return {"models": entries}


def model_facts(hosted: Hosted) -> dict[str, Any]:
    """Returns what `/api/show` tells of a model."""
    facts, config = describe(hosted.loaded.model), hosted.loaded.model.config
    kind = facts["architecture"]
    heads = config.layers[0]
    return {
        "license": facts["licence"] or "",
        "template": facts["chat_template"] or "",
        "parameters": "",
        "modelfile": "",
        "modified_at": _modified(hosted.loaded.path),
        "details": _details(hosted, facts),
        "model_info": {
            "general.architecture": kind,
            "general.parameter_count": facts["parameters"],
            f"{kind}.context_length": hosted.context,
            f"{kind}.embedding_length": config.d_model,
            f"{kind}.block_count": config.n_layers,
            f"{kind}.attention.head_count": heads.n_heads,
            f"{kind}.attention.head_count_kv": heads.n_kv_heads,
            f"{kind}.vocab_size": config.vocab_size,
        },
        "capabilities": ["completion", "embedding"],
    }


async def _entry(hosted: Hosted) -> dict[str, Any]:
    facts = describe(hosted.loaded.model)
    return {
        "name": hosted.name,
        "model": hosted.name,
        "modified_at": _modified(hosted.loaded.path),
        "size": facts["weights_bytes"],
        "digest": await asyncio.to_thread(_digest, hosted.loaded.path),
        "details": _details(hosted, facts),
    }


def _details(hosted: Hosted, facts: dict[str, Any]) -> dict[str, Any]:
    """The type of numbers is the one that most of the weights have."""
    dtypes = facts["dtypes"]
    return {
        "parent_model": "",
        "format": "gguf" if hosted.loaded.path.is_file() else "safetensors",
        "family": facts["architecture"],
        "families": [facts["architecture"]],
        "parameter_size": _short(facts["parameters"]),
        "quantization_level": max(dtypes, key=lambda name: int(dtypes[name]["values"])),
    }


def _short(parameters: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= size:
            return f"{parameters / size:.1f}{letter}"
    return str(parameters)


def _modified(path: Path) -> str:
    return _shown(path.stat().st_mtime)


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


@cache
def _digest(path: Path) -> str:
    """Returns the SHA-256 of a model's file, or over those of all files of its folder."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(p for p in path.iterdir() if p.is_file())
    lines = "".join(f"{sha256_file(p)}  {p.name}\n" for p in files)
    return hashlib.sha256(lines.encode()).hexdigest()
