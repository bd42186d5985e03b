"""LoRA adapters as plain values, and the fingerprint that ties one to its base model.

For: the one form that files, decoder and engine pass around.
Not for: files (`miudo.formats.adapter`), training (`miudo.decoder.lora`) or running
(`miudo.engine.native`).
Read next: `miudo.formats.adapter`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from miudo.config import ModelConfig
from miudo.errors import ModelFileError
from miudo.protocol import FloatArray
from miudo.tensors import Role, Weights, tensor_table

__all__ = ["Adapter", "LowRank", "base_fingerprint", "check_adapter"]

_ADAPTED = (Role.ATTENTION, Role.MLP)


@dataclass(frozen=True, slots=True)
class LowRank:
    """One matrix's correction: W + scale * up @ down (Hu et al. 2022).

    `down` is [rank, in] (PEFT's lora_A), `up` [out, rank] (lora_B), both float32.
    """

    down: FloatArray
    up: FloatArray
    scale: float

    @property
    def rank(self) -> int:
        """How many directions the correction has."""
        return int(self.down.shape[0])


@dataclass(frozen=True, slots=True)
class Adapter:
    """Corrections by canonical matrix name ("layers.0.attn.q.weight").

    `base` and `tokenizer` are the fingerprints of the model and tokenizer that it was trained
    on; None where its file does not say.
    """

    parts: Mapping[str, LowRank]
    base: str | None = None
    tokenizer: str | None = None


def base_fingerprint(config: ModelConfig, weights: Weights) -> str:
    """Returns a SHA-256 of the config and of every norm's values.

    Norms stay float32 whatever the matrices are stored in, so that a model and its quantised
    file share it, and two models that were trained apart do not.
    """
    digest = hashlib.sha256(repr(config.layers).encode())
    for spec in tensor_table(config):
        if spec.role is Role.NORM:
            digest.update(spec.name.encode() + weights[spec.name].data.tobytes())
    return digest.hexdigest()


def check_adapter(
    config: ModelConfig, adapter: Adapter, *, base: str | None = None, where: object = "adapter"
) -> None:
    """Raises ModelFileError for an adapter of another model, naming matrix and shapes.

    `base` is the model's `base_fingerprint`; not compared where either side has none.
    """
    if base is not None and adapter.base is not None and adapter.base != base:
        raise ModelFileError(
            f"was trained on the model {adapter.base[:12]}, this is {base[:12]}",
            where=where,
            remedy="Use it with its own base model",
        )
    shapes = {s.name: s.shape for s in tensor_table(config) if s.role in _ADAPTED}
    if not adapter.parts:
        raise ModelFileError("corrects no matrix", where=where)
    for name, part in adapter.parts.items():
        if name not in shapes:
            raise ModelFileError(f"{name} is no matrix of this model's blocks", where=where)
        rows, columns = shapes[name]
        found = (part.up.shape[0], part.down.shape[-1])
        if part.down.ndim != 2 or part.up.ndim != 2 or part.up.shape[1] != part.rank:
            raise ModelFileError(
                f"{name}: down {list(part.down.shape)} and up {list(part.up.shape)} share no rank",
                where=where,
            )
        if found != (rows, columns) or part.rank < 1:
            raise ModelFileError(
                f"{name} corrects {list(found)} by rank {part.rank}, the matrix is "
                f"{[rows, columns]}",
                where=where,
                remedy="Use it with its own base model",
            )
        if not (np.isfinite(part.down).all() and np.isfinite(part.up).all()):
            raise ModelFileError(f"{name} holds NaN or infinity", where=where)
