"""`/inspect/model/NAME`: which model it is, to the byte, how it is built, and what runs it.

For: evidence that names its model, and pages that must know whether two models cut text alike.
Not for: what every client needs (`miudo.serve.openai.models`), which costs nothing.
Read next: `miudo.formats.export`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from miudo.engine.native import NativeEngine
from miudo.serve.hosted import Hosted
from miudo.tensors import parameter_count

__all__ = ["identity_reply"]


async def identity_reply(hosted: Hosted) -> dict[str, Any]:
    """Returns the reply; files are read through once a model, beside the engine."""
    config, engine = hosted.loaded.engine.config, hosted.loaded.engine
    running = {}
    if isinstance(engine, NativeEngine):
        running = {
            "isa": engine.isa,
            "threads": engine.threads,
            "weight_bytes": engine.weight_bytes,
            "cache_type": engine.cache,
        }
    return {
        "model": hosted.name,
        "adapter": hosted.loaded.adapter,
        "sha256": await asyncio.to_thread(lambda: hosted.sha256),
        "tokenizer_sha256": hosted.loaded.tokenizer.fingerprint,
        "parameters": parameter_count(hosted.loaded.model.config),
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "context_length": config.max_positions,
        "layers": [
            {"heads": c.n_heads, "kv_heads": c.n_kv_heads, "window": c.window}
            for c in config.layers
        ],
        "engine": running,
    }
