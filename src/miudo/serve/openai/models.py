"""`/v1/models`: what is served.

For: the list, and one entry of it.
Not for: opening models (`miudo.serve.house`).
Read next: `miudo.serve.house`.
"""

from __future__ import annotations

from typing import Any

from miudo.serve.hosted import Hosted
from miudo.serve.house import House
from miudo.tensors import parameter_count

__all__ = ["model_entry", "model_list"]


def model_list(house: House) -> dict[str, Any]:
    """Returns every model's entry."""
    return {"object": "list", "data": [model_entry(hosted) for hosted in house.models]}


def model_entry(hosted: Hosted) -> dict[str, Any]:
    """Returns what a client needs to know of a model."""
    record = hosted.loaded.model.record
    return {
        "id": hosted.name,
        "object": "model",
        "created": hosted.created,
        "owned_by": "miudo",
        "context_length": hosted.context,
        "parameters": parameter_count(hosted.loaded.model.config),
        "licence": None if record is None else record.licence,
    }
