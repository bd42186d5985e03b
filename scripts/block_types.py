"""Writes the table of docs/block-types.md: sizes are counted and errors measured, not copied."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from generated import ROOT, between_marks, keep

from miudo.formats.blocks import CODECS, WRITABLE, encode, to_f32
from miudo.formats.precision import SHORTER_BLOCKS
from miudo.tensors import DType

COLUMNS = ("type", "bits", "block", "share a scale", "levels", "zero is kept", "error",
           "short rows", "what it is for")  # fmt: skip
PURPOSE = {
    DType.Q8_0: "the file to start from: hardly another model",
    DType.Q6_K: "near Q8_0, a quarter less",
    DType.Q5_1: "rows that fit no 256, all of one sign",
    DType.Q5_K: "between Q6_K and Q4_K",
    DType.Q5_0: "rows that fit no 256",
    DType.Q4_1: "rows that fit no 256, all of one sign",
    DType.Q4_K: "the usual choice at 4 bits",
    DType.Q4_0: "4 bits in any row of 32, zeros kept",
    DType.IQ4_NL: "4 bits in any row of 32, finer about zero",
    DType.IQ4_XS: "a little less than Q4_K at nearly its error",
    DType.MXFP4: "read only: models published in it",
    DType.Q3_K: "where 4 bits are too many, with calibration",
    DType.Q2_K: "with calibration or training; small models lose much",
    DType.TQ2_0: "models trained to -1, 0 and 1; of others little is left",
    DType.TQ1_0: "the same, smaller as a file; in memory as large as TQ2_0",
}


def main() -> None:
    """Writes the page, or with --check compares it."""
    types = sorted(CODECS, key=lambda t: (-bits(t), t.value))
    lines = [line(COLUMNS), line(["---"] + ["---:"] * 4 + ["---", "---:", "---", "---"])]
    lines += [line(cells(dtype)) for dtype in types]
    page = ROOT / "docs" / "block-types.md"
    keep(page, between_marks(page, "types", "\n" + "\n".join(lines) + "\n\n"))


def bits(dtype: DType) -> float:
    """Bits a value, scales included."""
    return 8 * dtype.block_bytes / dtype.block


def cells(dtype: DType) -> list[str]:
    """Returns one type's row."""
    codec = CODECS[dtype]
    scales, offsets = codec.grid(np.zeros(1, dtype=codec.fields))
    share = dtype.block // scales.shape[1]
    shorter = SHORTER_BLOCKS.get(dtype, DType.F16)
    zero = "yes" if offsets is None and 0 in codec.levels else "no"
    return [
        f"`{dtype}`",
        f"{bits(dtype):.4g}",
        str(dtype.block),
        str(share) + (" + offset" if offsets is not None else ""),
        str(len(codec.levels)),
        zero,
        error(dtype) if dtype in WRITABLE else "",
        str(shorter),
        PURPOSE[dtype],
    ]


def error(dtype: DType) -> str:
    """Root mean square error on normal noise, in standard deviations."""
    values = np.random.default_rng(1).standard_normal((64, 512)).astype(np.float32)
    off = (to_f32(encode(values, dtype)) - values).astype(np.float64)
    return f"{np.sqrt(np.mean(off**2)):.2g}"


def line(values: Iterable[str]) -> str:
    """Returns one line of a Markdown table."""
    return "| " + " | ".join(values) + " |"


if __name__ == "__main__":
    main()
