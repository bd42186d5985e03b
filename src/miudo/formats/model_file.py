"""A model as it lies on disk: config, tensors, tokenizer, template and record together.

For: what every reader returns and every writer takes, whatever the format.
Not for: running it (`miudo.engine.native`, `miudo.decoder`).
Read next: `miudo.formats.opening`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miudo.config import ModelConfig
from miudo.records import Record
from miudo.tensors import Weights
from miudo.text.tokenizer_json import TokenizerSpec

__all__ = ["ModelFile"]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """`weights` are usually memory maps of `path`; `architecture` is the name in the file."""

    config: ModelConfig
    weights: Weights
    tokenizer: TokenizerSpec | None
    chat_template: str | None
    record: Record | None
    architecture: str
    path: Path | None
