"""What rounding methods have in common: which tensor gets which type, and their checks.

For: one plan of types for all methods.
Not for: the order of work (`order`), the rounding (`nearest`, `gptq`, `learned`), or choosing
types by a budget (`mixed`).
Read next: `miudo.compress.quantize.nearest`, which needs no order; then `order`.

Shapes: B batch, T positions, O outputs and I inputs of a matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from miudo.compress.method import Method, Report, check_finite, check_seen, describe
from miudo.compress.station import Gram, Station
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError, DataError
from miudo.formats.block_codec import FloatArray
from miudo.formats.blocks import WRITABLE, to_f32
from miudo.formats.precision import stored_dtype, type_notes
from miudo.tensors import DType, Role, StoredTensor, Weights, tensor_table

__all__ = [
    "Calibration",
    "Plan",
    "Sequential",
    "calibrated",
    "check_calibrated",
    "check_enum",
    "check_type",
    "importance",
    "put",
    "rounded_decoder",
    "squared_error",
]

_KNOWN = tuple(dtype for dtype in WRITABLE if dtype is not DType.F32)

Statistics = TypeVar("Statistics")
Calibration = tuple[Tensor, ...]
"""Ids [B, T]: methods that go block by block need the text itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The type of every tensor of a file, and a note on each that is not the wanted one."""

    dtypes: Mapping[str, DType]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        decoder: Decoder,
        wanted: DType | Mapping[str, DType],
        tables: DType | None = None,
    ) -> Plan:
        """Returns the plan for one type, or for a type a tensor; see `precision.stored_dtype`.

        `tables` is the type of token table and head, where it is another.
        """
        dtypes: dict[str, DType] = {}
        others = []
        for spec, (_, tensor) in zip(tensor_table(decoder.config), decoder.tensors(), strict=True):
            asked = wanted if isinstance(wanted, DType) else wanted.get(spec.name, DType.F32)
            if tables is not None and spec.role in (Role.EMBED, Role.HEAD):
                asked = tables
            dtypes[spec.name], why = stored_dtype(spec, tensor, asked)
            if why:
                others.append((spec.name, dtypes[spec.name], why))
        return cls(dtypes, type_notes(others))

    def report(
        self, method: Method, decoder: Decoder, reason: str, notes: Iterable[str] = ()
    ) -> Report:
        """Returns the report of a file with these types."""
        config = decoder.config
        return describe(
            method,
            config,
            config,
            reasons={"": reason},
            dtypes=self.dtypes,
            notes=(*self.notes, *notes),
        )


def check_type(dtype: DType, tables: DType | None = None) -> None:
    """Raises ConfigError for a type without a rounding rule."""
    if dtype not in _KNOWN:
        raise ConfigError(f"dtype is {dtype}", remedy=f"Known are {', '.join(_KNOWN)}")
    if tables is not None and tables not in WRITABLE:
        raise ConfigError(f"tables is {tables}", remedy=f"Known are {', '.join(WRITABLE)}")


def check_enum(name: str, value: object, kind: type[Enum]) -> None:
    """Raises ConfigError for what is no member of `kind`."""
    if not isinstance(value, kind):
        known = ", ".join(str(member.value) for member in kind)
        raise ConfigError(f"{name} is {value!r}", remedy=f"Known are {known}")


def calibrated(method: Method, decoder: Decoder, batches: Iterable[Tensor]) -> Calibration:
    """Returns ids [B, T] as they were given. Raises DataError if there is none.

    Raises CheckFailedError if a tensor of `decoder` holds NaN.
    """
    check_finite(decoder)
    given = tuple(ids for ids in batches if ids.numel())
    check_seen(method.name, sum(ids.numel() for ids in given))
    return given


class Sequential(ABC):
    """A quantiser whose statistics are the text itself: inputs are found while it rounds."""

    __slots__ = ()
    name: ClassVar[str]
    needs_calibration: ClassVar[bool] = True

    def calibrate(self, decoder: Decoder, batches: Iterable[Tensor]) -> Calibration:
        """Returns ids [B, T]: what a matrix is given hangs on what was rounded before it.

        Raises DataError if there was no token, CheckFailedError for a tensor that holds NaN.
        """
        return calibrated(self, decoder, batches)

    def apply(
        self, decoder: Decoder, statistics: Calibration | None = None
    ) -> tuple[Decoder, Report]:
        """Returns the decoder with the weights that the file will hold, and the report."""
        stored, report = self.store(decoder, statistics)
        return rounded_decoder(decoder, stored), report

    @abstractmethod
    def store(
        self, decoder: Decoder, statistics: Calibration | None = None
    ) -> tuple[Weights, Report]:
        """Returns the file's tensors and the report. Raises DataError without calibration."""


def check_calibrated(method: Method, statistics: Statistics | None) -> Statistics:
    """Returns `statistics`. Raises DataError where `calibrate` was not called."""
    if statistics is None:
        raise DataError("needs calibration", where=method.name, remedy="Call calibrate first")
    return statistics


def importance(gram: Gram) -> FloatArray:
    """Returns the mean square of each input [I], as `formats.blocks.encode` takes it."""
    return gram.mean_square.numpy().astype(np.float32)


def rounded_decoder(decoder: Decoder, stored: Weights) -> Decoder:
    """Returns a decoder with the values that the file's tensors have."""
    return Decoder.from_weights(decoder.config, stored)


@torch.no_grad()
def squared_error(
    station: Station, weights: Mapping[str, Tensor], target: Sequence[Tensor]
) -> float:
    """Returns the squared error of a block with these weights, summed over all its inputs.

    `target` are tensors [B, T, D], one an input.
    """
    errors = (
        float((station.run(x, i, weights) - wanted).double().square().sum())
        for i, (x, wanted) in enumerate(zip(station.inputs, target, strict=True))
    )
    return sum(errors)


@torch.no_grad()
def put(weight: Tensor, stored: StoredTensor) -> None:
    """Gives `weight` the values of `stored`, in place."""
    weight.copy_(torch.from_numpy(to_f32(stored)))
