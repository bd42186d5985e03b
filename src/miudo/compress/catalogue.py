"""Every compression method, by name.

For: the conformance suite, planners, and reading a method back from its JSON.
Not for: the methods' own settings, which are each in its own file.
Read next: `miudo.compress.method`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from miudo.compress.distill.method import ResponseDistillation
from miudo.compress.method import Method
from miudo.compress.prune.depth import DepthPruning
from miudo.compress.prune.heads import HeadPruning
from miudo.compress.prune.hidden import HiddenPruning
from miudo.compress.prune.sparse import SparsePruning
from miudo.compress.prune.width import WidthPruning
from miudo.compress.quantize.awq import AWQ
from miudo.compress.quantize.gptq import GPTQ
from miudo.compress.quantize.importance import ImportanceRounding
from miudo.compress.quantize.learned import LearnedRounding
from miudo.compress.quantize.mixed import MixedTypes
from miudo.compress.quantize.nearest import NearestRounding
from miudo.compress.quantize.trained import TrainedRounding
from miudo.compress.settings import settings_from_json, settings_to_json
from miudo.errors import ConfigError

__all__ = ["METHODS", "method_from_json", "method_to_json"]

METHODS: Mapping[str, type[Any]] = {
    kind.name: kind
    for kind in (
        ResponseDistillation,
        DepthPruning,
        HiddenPruning,
        HeadPruning,
        WidthPruning,
        SparsePruning,
        NearestRounding,
        ImportanceRounding,
        GPTQ,
        AWQ,
        LearnedRounding,
        MixedTypes,
        TrainedRounding,
    )
}


def method_to_json(method: Method) -> dict[str, Any]:
    """Returns the method's name and settings as JSON values."""
    return {"method": method.name, "settings": settings_to_json(method)}


def method_from_json(values: Mapping[str, Any]) -> Method:
    """Returns the method that `method_to_json` wrote. Raises ConfigError for anything else."""
    name, settings = values.get("method"), values.get("settings", {})
    kind = METHODS.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(settings, Mapping):
        raise ConfigError(
            f"no compression method {name!r}", remedy=f"Known are {', '.join(sorted(METHODS))}"
        )
    return cast("Method", settings_from_json(kind, settings))
