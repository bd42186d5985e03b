"""The families of models, each two maps: Hugging Face folders and GGUF files.

For: finding the family of a file, or one that can express a config.
Not for: what a model computes; that follows from its `ModelConfig` alone.
Read next: `miudo.families.family`, `miudo.families.llama`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from miudo.config import ModelConfig
from miudo.errors import ModelFileError
from miudo.families.bloom import BLOOM
from miudo.families.dclm import DCLM
from miudo.families.family import Family
from miudo.families.fit import gguf_misfit, hf_misfit
from miudo.families.gemma import GEMMA2, GEMMA3
from miudo.families.gpt2 import GPT2
from miudo.families.granite import GRANITE
from miudo.families.llama import LLAMA
from miudo.families.minicpm import MINICPM
from miudo.families.minicpm3 import MINICPM3
from miudo.families.mistral import MISTRAL
from miudo.families.neox import NEOX
from miudo.families.olmo2 import OLMO2
from miudo.families.openelm import OPENELM
from miudo.families.opt import OPT
from miudo.families.phi import PHI
from miudo.families.qwen import QWEN2, QWEN3
from miudo.families.refused import REFUSED
from miudo.families.smollm3 import SMOLLM3
from miudo.families.stablelm import STABLELM

__all__ = [
    "FAMILIES",
    "by_gguf",
    "by_hf_config",
    "fitting",
    "for_config",
    "for_gguf",
    "gguf_misfit",
    "misfits",
]

# Where several can say a config, the first does.
FAMILIES: tuple[Family, ...] = (
    LLAMA, MISTRAL, QWEN2, QWEN3, PHI, MINICPM, GRANITE, SMOLLM3, OLMO2, MINICPM3, GPT2, BLOOM,
    OPT, NEOX, STABLELM, GEMMA2, GEMMA3, OPENELM, DCLM,
)  # fmt: skip


def by_hf_config(values: Mapping[str, Any]) -> Family:
    """Returns the family that config.json names: `architectures` first, then `model_type`.

    Raises ModelFileError naming what is known. Keys that name code are never followed.
    """
    named = values.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    for family in FAMILIES:
        if first in family.architectures:
            return family
    if first is None:
        for family in FAMILIES:
            if values.get("model_type") in family.model_types:
                return family
    name = first or values.get("model_type")
    if isinstance(name, str) and name in REFUSED:
        raise ModelFileError(
            f"architecture {name}: {REFUSED[name]}",
            where="config.json",
            remedy="This variant is not supported",
        )
    known = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise ModelFileError(
        f"architecture {name!r:.100} is unknown",
        where="config.json",
        remedy=f"Known are {known}",
    )


def by_gguf(architecture: str) -> Family:
    """Returns the family of a GGUF `general.architecture`; raises ModelFileError."""
    known = [family for family in FAMILIES if family.gguf_architecture]
    for family in known:
        if family.gguf_architecture == architecture:
            return family
    raise ModelFileError(
        f"architecture {architecture!r:.100} is unknown",
        where="general.architecture",
        remedy=f"Known are {', '.join(family.gguf_architecture for family in known)}",
    )


def for_config(config: ModelConfig, like: str = "") -> Family | None:
    """Returns a family whose folders can say exactly what `config` says, None without one.

    `like` is the architecture of the files that it came from, whose family comes first.
    """
    return next(fitting(config, like), None)


def fitting(config: ModelConfig, like: str = "") -> Iterator[Family]:
    """Yields every family whose folders can say `config`; see `for_config`."""
    own = [f for f in FAMILIES if like and like in (*f.architectures, f.gguf_architecture)]
    for family in (*own, *(f for f in FAMILIES if f not in own)):
        if hf_misfit(family, config) is None:
            yield family


def for_gguf(config: ModelConfig) -> Family | None:
    """Returns a family whose GGUF files mean exactly `config` to all programs, None without."""
    return next((f for f in FAMILIES if gguf_misfit(f, config) is None), None)


def misfits(config: ModelConfig) -> str:
    """Returns for every family why its folders cannot hold `config`."""
    return "; ".join(f"{f.name}: {why}" for f in FAMILIES if (why := hf_misfit(f, config)))
