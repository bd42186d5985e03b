"""Whether a family's files can say a config exactly: it must come back as it went.

For: finding what a folder or a GGUF file would lose, before it is written.
Not for: what other programs demand beyond that, which each family says.
Read next: `miudo.families.family`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from miudo.config import ModelConfig
from miudo.errors import ConfigError, ModelFileError
from miudo.families.family import Family
from miudo.families.gguf_rope import ROPE_TENSORS, rope_tensors
from miudo.families.places import sources

__all__ = ["gguf_misfit", "hf_misfit"]

# Square roots and their squares, of which files hold one and configs the other.
_SAME = 1e-12


def hf_misfit(family: Family, config: ModelConfig) -> str | None:
    """Returns why folders of `family` cannot hold `config`, None if they can."""
    return family.hf_misfit(config) or _lost(family, config, gguf=False)


def gguf_misfit(family: Family, config: ModelConfig) -> str | None:
    """Returns why GGUF files of `family` cannot mean `config` to all, None if they can."""
    if not family.gguf_architecture:
        return "other programs know no such GGUF"
    return family.gguf_misfit(config) or _lost(family, config, gguf=True)


def _lost(family: Family, config: ModelConfig, *, gguf: bool) -> str | None:
    try:
        names = sources(config, family.gguf_names if gguf else family.hf_names)
        if not gguf:
            back = family.config_from_hf(family.config_to_hf(config))
        else:
            ids = {k: getattr(config, k) for k in ("vocab_size", "bos_id", "eos_ids", "pad_id")}
            written = family.config_to_gguf(config) | ids | {ROPE_TENSORS: rope_tensors(config)}
            back = family.config_from_gguf(written, frozenset(s.name for s in names))
    except (ModelFileError, ConfigError) as error:
        return error.what
    return _difference(config, back)


def _difference(config: ModelConfig, back: ModelConfig) -> str | None:
    if config.n_layers != back.n_layers:
        return f"it has {config.n_layers} layers, such files mean {back.n_layers}"
    config, back = _without_idle_windows(config), _without_idle_windows(back)
    for i, (ours, theirs) in enumerate(zip(config.layers, back.layers, strict=True)):
        if found := _field(ours, theirs):
            return f"layer {i}: {found}"
    return _field(dataclasses.replace(config, layers=back.layers), back)


def _without_idle_windows(config: ModelConfig) -> ModelConfig:
    """`config` without the windows that no text is long enough for."""
    layers = tuple(
        dataclasses.replace(layer, window=None)
        if layer.window is not None and layer.window >= config.max_positions
        else layer
        for layer in config.layers
    )
    return dataclasses.replace(config, layers=layers)


def _field(ours: Any, theirs: Any) -> str | None:
    for field in dataclasses.fields(ours):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        close = isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=_SAME)
        if a != b and not close:
            return f"{field.name} is {a}, such files mean {b}"
    return None
