"""Round to nearest with scales that spare the columns whose inputs are large.

For: more of the quality at the same bytes for one pass over a few thousand tokens; what
llama.cpp does with an importance matrix.
Not for: making up for rounding errors (`miudo.compress.quantize.gptq`).
Read next: `miudo.formats.blocks_32_fit`, the search; then `miudo.compress.quantize.gptq`.

Shapes: B batch, T positions, I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from miudo.compress.method import Report
from miudo.compress.quantize.plan import (
    Plan,
    calibrated,
    check_calibrated,
    check_type,
    importance,
    rounded_decoder,
)
from miudo.compress.quantize.tables import table_gram
from miudo.compress.walk import walk
from miudo.decoder.decoder import Decoder
from miudo.formats.block_codec import FloatArray
from miudo.formats.blocks import encode, to_f32
from miudo.tensors import DType, Weights

__all__ = ["Importance", "ImportanceRounding"]

Importance = Mapping[str, FloatArray]
"""A matrix's name to the mean square of each of its inputs [I], a table's to its like."""


@dataclass(frozen=True, slots=True)
class ImportanceRounding:
    """Stores matrices as `dtype`, with scales of least sum_j E[x_j^2] (w_j - q_j)^2 a block.

    `tables` is the type of token table and head, where it is another. Raises ConfigError for a
    type without a rounding rule.
    """

    name: ClassVar[str] = "importance"
    needs_calibration: ClassVar[bool] = True

    dtype: DType = DType.Q4_0
    tables: DType | None = None

    def __post_init__(self) -> None:
        check_type(self.dtype, self.tables)

    def calibrate(self, decoder: Decoder, batches: Iterable[Tensor]) -> Importance:
        """Returns the mean squares of each matrix's inputs, on ids [B, T]; see `tables`.

        Raises DataError if there was no token, CheckFailedError for a tensor that holds NaN or
        a matrix that saw nothing.
        """
        given = calibrated(self, decoder, batches)
        matrices = {
            name: importance(gram)
            for station in walk(decoder, given)
            for name, gram in station.grams().items()
        }
        if (self.tables or self.dtype).block == 1:  # nothing to weigh, and it takes longest
            return matrices
        return matrices | {"embed.weight": importance(table_gram(decoder, given))}

    def apply(
        self, decoder: Decoder, statistics: Importance | None = None
    ) -> tuple[Decoder, Report]:
        """Returns the decoder with the weights that the file will hold, and the report."""
        stored, report = self.store(decoder, statistics)
        return rounded_decoder(decoder, stored), report

    def store(
        self, decoder: Decoder, statistics: Importance | None = None
    ) -> tuple[Weights, Report]:
        """Returns the file's tensors and the report. Raises DataError without statistics."""
        weighed = check_calibrated(self, statistics)
        plan = Plan.of(decoder, self.dtype, self.tables)
        stored = {
            name: encode(to_f32(tensor), plan.dtypes[name], weighed.get(name))
            for name, tensor in decoder.tensors()
        }
        return stored, plan.report(self, decoder, "rounded to nearest, by importance")
