"""LoRA adapters as plain values, and the fingerprint that ties one to its base model.

For: the one form that files, decoder and engine pass around.
Not for: files (`miudo.formats.adapter`), training (`miudo.decoder.lora`) or running
(`miudo.engine.native`).
Read next: `miudo.formats.adapter`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from miudo.config import ModelConfig
from miudo.errors import ModelFileError, RequestError
from miudo.limits import LIMITS
from miudo.protocol import Engine, FloatArray, SeqWork
from miudo.tensors import DType, Role, StoredTensor, Weights, tensor_table

__all__ = [
    "AdaptableEngine",
    "Adapter",
    "AdapterBook",
    "LowRank",
    "base_fingerprint",
    "check_adapter",
]

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


@runtime_checkable
class AdaptableEngine(Engine, Protocol):
    """An engine that runs adapters beside the model, never merged into it.

    A conversation keeps the adapter of its first step, because its keys and values are that
    adapter's; truncated to nothing it may take another.
    """

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        """Makes `SeqWork.adapter` = `name` mean `adapter`.

        Raises RequestError for a name in use, ModelFileError for an adapter of another model;
        nothing has changed then.
        """
        ...

    def remove_adapter(self, name: str) -> None:
        """Forgets an adapter. Raises RequestError if it is unknown or a conversation has it."""
        ...


@dataclass
class AdapterBook:
    """The adapters of an engine in Python, and which conversation has which.

    `bound` names, for every conversation that holds positions, the adapter of its first step.
    """

    adapters: dict[str, Adapter] = field(default_factory=dict)
    bound: dict[int, str | None] = field(default_factory=dict)

    def add(self, name: str, adapter: Adapter) -> None:
        """Adds a checked adapter. Raises RequestError for no name, or one in use."""
        if not name or name in self.adapters:
            state = "is there already" if name else "has no name"
            raise RequestError(f"adapter {name!r} {state}")
        self.adapters[name] = adapter

    def remove(self, name: str) -> None:
        """Forgets an adapter. Raises RequestError if it is unknown or a conversation has it."""
        self.named(name)
        users = [conversation for conversation, held in self.bound.items() if held == name]
        if users:
            raise RequestError(
                f"adapter {name!r} is used by conversation {users[0]}", remedy="Close it before"
            )
        del self.adapters[name]

    def fork(self, conversation: int, forked: int, length: int) -> None:
        """Notes that `forked` begins with `length` positions of `conversation`."""
        if length:
            self.bound[forked] = self.bound[conversation]

    def named(self, name: str | None) -> Adapter | None:
        """Returns the adapter of that name, None for None; raises RequestError if unknown."""
        if name is None:
            return None
        if name not in self.adapters:
            raise RequestError(f"no adapter named {name!r} was given to this engine")
        return self.adapters[name]

    def check(self, work: SeqWork) -> None:
        """Raises RequestError for an unknown adapter, or not that of the conversation."""
        self.named(work.adapter)
        before = self.bound.get(work.conversation, work.adapter)
        if before != work.adapter:
            raise RequestError(
                f"conversation {work.conversation} was begun with {_said(before)} and cannot go "
                f"on with {_said(work.adapter)}",
                remedy="Open a new conversation, or truncate this one to nothing",
            )


def _said(name: str | None) -> str:
    return "no adapter" if name is None else f"adapter {name!r}"


def base_fingerprint(config: ModelConfig, weights: Weights) -> str:
    """Returns a SHA-256 of the layers' shapes and of every norm's values, rounded to bfloat16.

    Equal for a model's F32 and BF16 folders and its quantised files, which keep norms in float32;
    models that were trained apart differ. A float16 folder has rounded its norms elsewhere and
    differs too; a merged adapter leaves the norms, and so the fingerprint, as they were.
    """
    # What is absent is left out: a field that is added later changes no model without it.
    layers = [
        {k: v for k, v in dataclasses.asdict(layer).items() if v is not None}
        for layer in config.layers
    ]
    digest = hashlib.sha256(json.dumps(layers, sort_keys=True).encode())
    for spec in tensor_table(config):
        if spec.role is Role.NORM:
            digest.update(spec.name.encode() + _bf16(weights[spec.name]))
    return digest.hexdigest()


def _bf16(norm: StoredTensor) -> bytes:
    """The values as bfloat16, ties to even: a folder of BF16 holds norms so."""
    if norm.dtype not in (DType.F32, DType.F16):  # blocks no writer makes: taken as they are
        return norm.data.tobytes()
    stored = np.ascontiguousarray(norm.data).view("<f2" if norm.dtype is DType.F16 else "<f4")
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
        if not 1 <= part.rank <= LIMITS.adapter_rank:
            raise ModelFileError(
                f"{name} has rank {part.rank}, allowed 1 to {LIMITS.adapter_rank}", where=where
            )
        found = (part.up.shape[0], part.down.shape[1])
        if found != (rows, columns):
            raise ModelFileError(
                f"{name} corrects {list(found)} by rank {part.rank}, the matrix is "
                f"{[rows, columns]}",
                where=where,
                remedy="Use it with its own base model",
            )
        if not all(np.isfinite(x).all() for x in (part.down, part.up, part.scale)):
            raise ModelFileError(f"{name} holds NaN or infinity", where=where)
