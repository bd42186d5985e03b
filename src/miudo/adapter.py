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
from miudo.tensors import DType, Role, StoredTensor, Weights, tensor_table

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
    """Returns a SHA-256 of the layers' shapes and of every norm's values, rounded to bfloat16.

    Equal for a model's F32 and BF16 folders and its quantised files, which keep norms in float32;
    models that were trained apart differ. A float16 folder has rounded its norms elsewhere and
    differs too; a merged adapter leaves the norms, and so the fingerprint, as they were.
    """
    digest = hashlib.sha256(repr(config.layers).encode())
    for spec in tensor_table(config):
        if spec.role is Role.NORM:
            digest.update(spec.name.encode() + _bf16(weights[spec.name]))
    return digest.hexdigest()


def _bf16(norm: StoredTensor) -> bytes:
    """The values as bfloat16, ties to even: a folder of BF16 holds norms so."""
    if norm.dtype not in (DType.F32, DType.F16):  # blocks no writer makes: taken as they are
        return norm.data.tobytes()
    stored = norm.data.view("<f2" if norm.dtype is DType.F16 else "<f4")
    bits = stored.astype("<f4").view("<u4")
    rounded: bytes = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return rounded


def check_adapter(
    config: ModelConfig,
    adapter: Adapter,
    *,
    base: str | None = None,
    tokenizer: str | None = None,
    where: object = "adapter",
) -> None:
    """Raises ModelFileError for an adapter of another model, naming matrix and shapes.

    `base` is the model's `base_fingerprint`, `tokenizer` its tokenizer's; neither is compared
    where either side has none.
    """
    for what, own, given in (
        ("model", adapter.base, base),
        ("tokenizer", adapter.tokenizer, tokenizer),
    ):
        if own is not None and given is not None and own != given:
            raise ModelFileError(
                f"was trained on the {what} {own[:12]}, this is {given[:12]}",
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
        if part.down.ndim != 2 or part.up.ndim != 2 or part.up.shape[1] != part.rank:
            raise ModelFileError(
                f"{name}: down {list(part.down.shape)} and up {list(part.up.shape)} share no rank",
                where=where,
            )
        found = (part.up.shape[0], part.down.shape[1])
        if found != (rows, columns) or part.rank < 1:
            raise ModelFileError(
                f"{name} corrects {list(found)} by rank {part.rank}, the matrix is "
                f"{[rows, columns]}",
                where=where,
                remedy="Use it with its own base model",
            )
        if not (np.isfinite(part.down).all() and np.isfinite(part.up).all()):
            raise ModelFileError(f"{name} holds NaN or infinity", where=where)
