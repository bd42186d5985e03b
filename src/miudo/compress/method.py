"""The contract of every compression method: settings, calibrate, apply, report.

For: what quantisers, pruners and distillers have in common, so that one conformance suite,
one record and one verb's shape fit them all.
Not for: the methods themselves, or which of them to use (`miudo.shrink`).
Read next: `miudo.compress.prune.depth`, a short method, then `miudo.compress.catalogue`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from miudo.compress.settings import settings_to_json
from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, ConfigError, DataError
from miudo.tensors import DType, Weights, parameter_count, tensor_table

__all__ = [
    "Method",
    "Quantizer",
    "Report",
    "TensorChange",
    "check_finite",
    "check_seen",
    "describe",
    "in_range",
]


class Method(Protocol):
    """A frozen settings dataclass that can shrink a decoder.

    `needs_calibration` says whether `calibrate` must come before `apply`. Methods never
    change the decoder they are given.
    """

    name: ClassVar[str]
    needs_calibration: ClassVar[bool]

    def calibrate(self, decoder: Decoder, batches: Iterable[Tensor]) -> Any:
        """Returns statistics from ids [B, T] batches. Raises DataError if it saw nothing."""
        ...

    def apply(self, decoder: Decoder, statistics: Any = None) -> tuple[Decoder, Report]:
        """Returns a new, smaller decoder and the account of what changed."""
        ...


@runtime_checkable
class Quantizer(Method, Protocol):
    """A method whose result is numbers as they lie in a file."""

    def store(self, decoder: Decoder, statistics: Any = None) -> tuple[Weights, Report]:
        """Returns the file's tensors, whose values `apply` gives a decoder, and the report.

        To encode that decoder would not do: where scales are searched for, what was rounded
        is rounded anew.
        """
        ...


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor that is not what it was; shape None: it is not there on that side.

    `sparse_bytes` are those of a sparse one, which its shape does not tell.
    """

    name: str
    shape_before: tuple[int, ...] | None
    shape_after: tuple[int, ...] | None
    dtype_after: DType
    reason: str
    sparse_bytes: int | None = None

    @property
    def bytes_before(self) -> int:
        """Bytes it took as F32."""
        return 0 if self.shape_before is None else DType.F32.size_bytes(self.shape_before)

    @property
    def bytes_after(self) -> int:
        """Bytes it takes as `dtype_after`."""
        if self.shape_after is None or self.sparse_bytes is not None:
            return self.sparse_bytes or 0
        return self.dtype_after.size_bytes(self.shape_after)


@dataclass(frozen=True, slots=True)
class Report:
    """What a method did. `bytes_before` counts float32, `bytes_after` each tensor's own type.

    `changes` account for the whole difference in bytes, tensor by tensor. `layers` says of each
    layer after which one it was before, where some went.
    """

    method: str
    settings: Mapping[str, Any]
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    changes: tuple[TensorChange, ...] = ()
    notes: tuple[str, ...] = field(default=())
    layers: tuple[int, ...] | None = None

    @property
    def bits_per_weight(self) -> float:
        """True bits per parameter after, scales included."""
        return 8.0 * self.bytes_after / self.parameters_after

    def stored_dtypes(self) -> dict[str, DType]:
        """Returns the type of each tensor that does not stay F32."""
        return {c.name: c.dtype_after for c in self.changes if c.dtype_after is not DType.F32}

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        plain = dataclasses.asdict(self)
        plain["bits_per_weight"] = self.bits_per_weight
        return plain


def describe(
    method: Method,
    before: ModelConfig,
    after: ModelConfig,
    *,
    reasons: Mapping[str, str],
    dtypes: Mapping[str, DType] | None = None,
    renamed: Mapping[str, str | None] | None = None,
    notes: tuple[str, ...] = (),
) -> Report:
    """Returns the report of a change from `before` to `after`, counted in the tensor tables.

    `renamed` maps old names to new ones (None: gone). `reasons` maps a role's value to why
    tensors of that role changed; `dtypes` maps new names to the type they are stored in.
    """
    given = dtypes or {}
    names = renamed or {}
    left = {s.name: s for s in tensor_table(after)}
    changes: list[TensorChange] = []
    for spec in tensor_table(before):
        new_name = names.get(spec.name, spec.name)
        new = None if new_name is None else left.pop(new_name, None)
        dtype = DType.F32 if new is None else given.get(new.name, DType.F32)
        if new is None or new.shape != spec.shape or dtype is not DType.F32:
            reason = reasons.get(spec.role.value, reasons.get("", ""))
            name, shape = (spec.name, None) if new is None else (new.name, new.shape)
            changes.append(TensorChange(name, spec.shape, shape, dtype, reason))
    for spec in left.values():
        dtype = given.get(spec.name, DType.F32)
        changes.append(TensorChange(spec.name, None, spec.shape, dtype, "new"))
    sizes = (given.get(s.name, DType.F32).size_bytes(s.shape) for s in tensor_table(after))
    return Report(
        method=method.name,
        settings=settings_to_json(method),
        parameters_before=parameter_count(before),
        parameters_after=parameter_count(after),
        bytes_before=sum(DType.F32.size_bytes(s.shape) for s in tensor_table(before)),
        bytes_after=sum(sizes),
        changes=tuple(changes),
        notes=notes,
    )


def check_finite(decoder: Decoder) -> None:
    """Raises CheckFailedError naming the first tensor that holds NaN or infinity."""
    for name, value in decoder.named_parameters():
        wrong = int((~torch.isfinite(value.detach())).sum())
        if wrong:
            raise CheckFailedError(
                f"{wrong} of {value.numel()} values are NaN or infinite",
                where=name,
                remedy="Take an earlier checkpoint: this model is broken",
            )


def check_seen(method: str, tokens: int) -> None:
    """Raises DataError if a calibration saw no tokens."""
    if tokens <= 0:
        raise DataError(
            "calibration saw no tokens",
            where=method,
            remedy="Give calibration text of at least one whole block with --data",
        )


def in_range(name: str, value: float, low: float, high: float, *, whole: bool = False) -> None:
    """Raises ConfigError unless `value` is a number (a whole one) from `low` to `high`."""
    kinds = (int,) if whole else (int, float)
    # bool is an int in Python; NaN fails the comparison.
    if type(value) not in kinds or not low <= value <= high:
        kind = "whole numbers" if whole else "numbers"
        raise ConfigError(f"{name} is {value!r}", remedy=f"Allowed are {kind} {low} to {high}")
