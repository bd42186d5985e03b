"""Number types bit for bit as other programs have them: the `gguf` package, llama.cpp itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from miudo.formats import open_model
from miudo.formats.blocks import WRITABLE, encode, to_f32
from miudo.tensors import DType, StoredTensor

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.parity

Floats = npt.NDArray[np.float32]
SEARCHED = tuple(t for t in WRITABLE if t.block == 256 or t is DType.IQ4_NL)
EXACT = tuple(t for t in WRITABLE if t.block == 32 and t not in SEARCHED)
MODEL = Path(__file__).parents[2] / "models" / "en-6m"


def awkward(rows: int, cols: int) -> Floats:
    """Rows of all sizes; of zeros, of whole numbers, of ties once the scale is 1, of one value."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((rows, cols)) * 10.0 ** rng.integers(-6, 4, (rows, 1))
    values[0] = 0
    values[1, :32] = np.arange(-16, 16)
    values[2, :32] = np.arange(32) + 0.5
    values[2, 0] = 127
    values[3] = -2.5
    values[4] = 8 - np.arange(cols) % 16 - 0.5
    values[5] += 100
    return values.astype(np.float32)


@pytest.mark.parametrize("dtype", [t for t in DType if t is not DType.F32 and not t.sparse])
def test_every_type_means_the_same_to_the_bit(dtype: DType) -> None:
    """Of blocks of random bits, so that scales are of all sizes, infinite and no number too."""
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, dtype.size_bytes((300, 256)), dtype=np.uint8)
    ours = to_f32(StoredTensor(dtype, (300, 256), data))
    with np.errstate(all="ignore"):
        kind = gguf.GGMLQuantizationType[dtype.value]
        back = gguf.dequantize(data.reshape(300, -1), kind).reshape(300, 256)
    number = ~np.isnan(back)
    np.testing.assert_array_equal(np.isnan(ours), ~number)
    np.testing.assert_array_equal(ours[number].view(np.uint32), back[number].view(np.uint32))
    assert number.mean() > 0.8


@pytest.mark.parametrize("dtype", [*EXACT, DType.F16, DType.BF16])
def test_rounding_is_the_same_to_the_bit(dtype: DType, ggml_quantize: Any) -> None:
    values = awkward(64, 256)
    ours = encode(values, dtype).data
    package = gguf.quantize(values, gguf.GGMLQuantizationType[dtype.value])
    np.testing.assert_array_equal(ours, package.view(np.uint8).reshape(-1))
    if dtype in EXACT:
        np.testing.assert_array_equal(ours, ggml_quantize(values, dtype))


def rows_of_all_kinds() -> dict[str, Floats]:
    """Rows of 512: noise of several kinds, and those of a trained model."""
    rng = np.random.default_rng(2)
    shape = (256, 512)
    kinds = {
        "normal": rng.standard_normal(shape),
        "heavy tails": rng.standard_t(3, shape),
        "off centre": rng.standard_normal(shape) + 3,
        "one sign": np.abs(rng.standard_normal(shape)),
        "sparse": rng.standard_normal(shape) * (rng.random(shape) < 0.1),
    }
    rows = {kind: (values * 0.02).astype(np.float32) for kind, values in kinds.items()}
    weights = open_model(MODEL).weights
    rows["trained"] = to_f32(weights["layers.2.mlp.down.weight"])
    rows["trained gate"] = to_f32(weights["layers.2.mlp.gate.weight"]).reshape(-1, 512)
    return rows


def rmse(values: Floats, data: npt.NDArray[np.uint8], dtype: DType, weight: Floats | None) -> float:
    off = (to_f32(StoredTensor(dtype, values.shape, data)) - values).astype(np.float64)
    return float(np.sqrt(np.average(off**2, axis=1, weights=weight).mean()))


@pytest.mark.parametrize("dtype", SEARCHED)
def test_searched_scales_are_no_worse(dtype: DType, ggml_quantize: Any) -> None:
    """In plain squared error, though neither search asks for that: large values weigh more."""
    for kind, values in rows_of_all_kinds().items():
        ours, reference = encode(values, dtype).data, ggml_quantize(values, dtype)
        assert rmse(values, ours, dtype, None) <= rmse(values, reference, dtype, None), kind


@pytest.mark.parametrize("dtype", SEARCHED)
def test_weighted_errors_are_no_worse_than_with_their_importance_matrix(
    dtype: DType, ggml_quantize: Any
) -> None:
    rng = np.random.default_rng(3)
    importance = (rng.standard_normal(512) ** 2 * rng.lognormal(0, 1, 512)).astype(np.float32)
    importance += np.float32(1e-3)
    for kind, values in rows_of_all_kinds().items():
        ours = encode(values, dtype, importance).data
        reference = ggml_quantize(values, dtype, importance)
        assert rmse(values, ours, dtype, importance) <= rmse(
            values, reference, dtype, importance
        ), kind
