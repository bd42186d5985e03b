"""Round-to-nearest weights: 8 bits in blocks of 32 (GGUF's Q8_0).

For: a file a little over a quarter of float32's size, without calibration data.
Not for: fewer bits, which need more than rounding.
Read next: `miudo.formats.blocks` for the rounding itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from miudo.compress.method import Report, check_finite, describe
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError
from miudo.formats.blocks import encode, to_f32
from miudo.formats.layout import stored_dtype
from miudo.tensors import DType, StoredTensor, Weights, tensor_table

__all__ = ["NearestRounding", "stored_weights"]


@dataclass(frozen=True, slots=True)
class NearestRounding:
    """Stores every matrix whose rows fit as `dtype`, the others as F16, norms and biases F32.

    Q8_0 as in llama.cpp: per 32 values of a row one float16 scale and 32 signed bytes, 8.5
    bits a weight. Raises ConfigError for a type without a rounding rule.
    """

    name: ClassVar[str] = "nearest"
    needs_calibration: ClassVar[bool] = False

    dtype: DType = DType.Q8_0

    def __post_init__(self) -> None:
        if self.dtype not in (DType.Q8_0, DType.F16, DType.BF16):
            raise ConfigError(f"dtype is {self.dtype}", remedy="Known are Q8_0, F16, BF16")

    def calibrate(self, decoder: Decoder, batches: Iterable[Tensor]) -> None:
        """Returns None: rounding needs no data."""

    def apply(self, decoder: Decoder, statistics: None = None) -> tuple[Decoder, Report]:
        """Returns the decoder with the weights that the file will hold, and the report.

        `stored_weights` then gives the file's tensors: their values are the decoder's, to
        the last bit. Raises CheckFailedError if a tensor holds NaN.
        """
        check_finite(decoder)
        weights = decoder.to_weights()
        dtypes: dict[str, DType] = {}
        notes = []
        for spec in tensor_table(decoder.config):
            dtypes[spec.name], why = stored_dtype(spec, weights[spec.name], self.dtype)
            if why:
                notes.append(f"{spec.name} is {dtypes[spec.name]}: {why}")
        rounded = {
            name: StoredTensor.from_f32(to_f32(encode(to_f32(t), dtypes[name])))
            for name, t in weights.items()
        }
        report = describe(
            self,
            decoder.config,
            decoder.config,
            reasons={"": "rounded to nearest"},
            dtypes=dtypes,
            notes=tuple(notes),
        )
        return Decoder.from_weights(decoder.config, rounded), report


def stored_weights(decoder: Decoder, report: Report) -> Weights:
    """Returns the tensors of `decoder` as a file holds them, in the types `report` names.

    Exact for the decoder that `apply` returned: rounding what was rounded changes nothing.
    """
    dtypes = report.stored_dtypes()
    return {
        name: encode(to_f32(tensor), dtypes.get(name, DType.F32))
        for name, tensor in decoder.to_weights().items()
    }
