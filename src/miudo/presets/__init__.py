"""Shapes that models are made in: one JSON file a preset.

For: `miudo train --preset NAME`; a file holds the values of one `ModelConfig`.
Not for: trained weights, or settings of a training run (`miudo.train.settings`).
Read next: `miudo.config`.
"""

from __future__ import annotations

import dataclasses
import json
from importlib import resources

from miudo.config import ModelConfig
from miudo.errors import ConfigError

__all__ = ["load_preset", "preset_names"]


def preset_names() -> tuple[str, ...]:
    """Returns the names of all presets, sorted."""
    files = resources.files("miudo.presets").iterdir()
    return tuple(sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json")))


def load_preset(name: str, *, vocab_size: int | None = None) -> ModelConfig:
    """Returns the preset `name`, with another vocabulary's size where one is given.

    Raises ConfigError naming the presets there are.
    """
    if name not in preset_names():
        raise ConfigError(f"no preset {name!r}", remedy=f"Known are {', '.join(preset_names())}")
    text = (resources.files("miudo.presets") / f"{name}.json").read_text(encoding="utf-8")
    config = ModelConfig.from_json(json.loads(text))
    return config if vocab_size is None else dataclasses.replace(config, vocab_size=vocab_size)
