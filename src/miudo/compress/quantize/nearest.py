"""Round-to-nearest weights: 2 to 8 bits in the blocks of GGUF, without calibration data.

For: a file a little over a quarter (Q8_0) or an eighth (Q4_0, Q4_K) of float32's size.
Not for: keeping more of the quality at few bits, which takes data or training.
Read next: `miudo.formats.blocks` for the rounding itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from miudo.compress.method import Report, check_finite
from miudo.compress.quantize.plan import Plan, check_type, rounded_decoder
from miudo.decoder.decoder import Decoder
from miudo.formats.blocks import encode, to_f32
from miudo.tensors import DType, Weights

__all__ = ["NearestRounding"]


@dataclass(frozen=True, slots=True)
class NearestRounding:
    """Stores matrices as `dtype`, those that do not fit as `precision.stored_dtype` says.

    Q8_0 holds per 32 values of a row one float16 scale and 32 signed bytes, 8.5 bits a weight;
    docs/block-types.md has the others' bits, errors, and which keep zeros exactly zero. Scales
    are llama.cpp's or, where they are searched for, of no larger error.
    `tables` is the type of token table and head, where it is another. Raises ConfigError for a
    type without a rounding rule.
    """

    name: ClassVar[str] = "nearest"
    needs_calibration: ClassVar[bool] = False

    dtype: DType = DType.Q8_0
    tables: DType | None = None

    def __post_init__(self) -> None:
        check_type(self.dtype, self.tables)

    def calibrate(self, decoder: Decoder, batches: Iterable[Tensor]) -> None:
        """Returns None: rounding needs no data."""

    def apply(self, decoder: Decoder, statistics: None = None) -> tuple[Decoder, Report]:
        """Returns the decoder with the weights that the file will hold, and the report.

        Raises CheckFailedError if a tensor holds NaN.
        """
        stored, report = self.store(decoder)
        return rounded_decoder(decoder, stored), report

    def store(self, decoder: Decoder, statistics: None = None) -> tuple[Weights, Report]:
        """Returns the file's tensors, whose values `apply` gives a decoder, and the report.

        To encode that decoder would not do: where scales are searched for, what was rounded
        is rounded anew. Raises CheckFailedError if a tensor holds NaN.
        """
        check_finite(decoder)
        plan = Plan.of(decoder, self.dtype, self.tables)
        stored = {
            name: encode(to_f32(tensor), plan.dtypes[name]) for name, tensor in decoder.tensors()
        }
        return stored, plan.report(self, decoder, "rounded to nearest")
