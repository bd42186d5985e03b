"""Pieces of the core against their oracles in NumPy, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miudo.engine.native_door import DTYPES, load_native, sampling_values
from miudo.errors import RequestError
from miudo.formats.blocks import encode, to_f32
from miudo.philox import uniform
from miudo.protocol import SamplingSettings
from miudo.sampling import sample
from miudo.tensors import DType, StoredTensor

Floats = npt.NDArray[np.float32]
WORDS = st.integers(0, 2**64 - 1)
HALF_MAX = np.float32(65504)


@pytest.fixture(params=["portable", "avx2", "best"])
def native(request: pytest.FixtureRequest, force_isa: Callable[[str | None], None]) -> Any:
    force_isa(None if request.param == "best" else request.param)
    return load_native()


def linear(native: Any, weight: StoredTensor, x: Floats, *, int8: bool) -> Floats:
    rows, cols = weight.shape
    out = np.full((len(x), rows), np.nan, dtype=np.float32)
    native.linear(DTYPES.index(weight.dtype), rows, cols, weight.data, x, int8, out)
    return out


def int8_oracle(weight: StoredTensor, x: Floats) -> Floats:
    """Every operation in the core's order: exact sums of integers, then float32 by groups."""
    rows, cols = weight.shape
    blocks = weight.data.reshape(rows, cols // 32, 34)
    scales = np.ascontiguousarray(blocks[:, :, :2]).view("<f2")[:, :, 0].astype(np.float32)
    quants = blocks[:, :, 2:].view(np.int8).astype(np.int32)
    groups = x.reshape(len(x), cols // 32, 32)
    most = np.abs(groups).max(-1)
    with np.errstate(over="ignore", divide="ignore"):
        sx = np.minimum((most / np.float32(127)).astype(np.float16).astype(np.float32), HALF_MAX)
        inverse = np.where(sx > 0, np.float32(127) / most, np.float32(0))[:, :, None]
    qx = np.clip(np.rint(groups * inverse), -127, 127).astype(np.int32)
    out = np.zeros((len(x), rows), dtype=np.float32)
    for g in range(cols // 32):
        dots = (qx[:, None, g] * quants[None, :, g]).sum(-1)  # n rows, int32
        out += dots.astype(np.float32) * (scales[None, :, g] * sx[:, None, g])
    return out


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31, 67])
@pytest.mark.parametrize("cols", [32, 96, 544])
def test_int8_products_to_the_last_bit(native: Any, rows: int, cols: int) -> None:
    rng = np.random.default_rng(rows * cols)
    weight = encode(rng.standard_normal((rows, cols)).astype(np.float32), DType.Q8_0)
    for n in (1, 2, 3, 4, 5, 11):
        spread = np.exp(rng.standard_normal((n, 1)) * 4)
        x = (rng.standard_normal((n, cols)) * spread).astype(np.float32)
        np.testing.assert_array_equal(linear(native, weight, x, int8=True), int8_oracle(weight, x))


def test_int8_products_at_the_edges(native: Any) -> None:
    rng = np.random.default_rng(8)
    data = rng.integers(0, 256, (20, 2, 34), dtype=np.uint8)
    data[:, :, :2] = np.array([1.0], dtype="<f2").view(np.uint8)
    data[:8, :, 2:] = 0x80  # -128, which other programs may write
    data[8:12, :, 2:] = 127
    weight = StoredTensor(DType.Q8_0, (20, 64), data.reshape(-1))
    x = rng.standard_normal((11, 64)).astype(np.float32)
    x[0] = 0
    x[1] = 1
    x[2] = -1
    x[3, :32] = 1e-45  # so small that a scale underflows
    x[4] = np.arange(64) - 31.5  # halves: ties go to the even number
    x[5] = 127.0
    x[5, 1:] = np.arange(63) / 2
    x[6] = 1e30  # beyond float16
    x[7] *= 1e-5  # subnormal in float16
    x[8, :32] = np.float32(127 * 2.0**-25)  # half the smallest: to even, which is 0
    out = linear(native, weight, x, int8=True)
    np.testing.assert_array_equal(out, int8_oracle(weight, x))
    assert np.isfinite(out).all()


def test_activation_scales_are_float16_everywhere(native: Any) -> None:
    """A group of one value amax, times 1: 127 scales, in every binade, on ties and beside them."""
    halves = np.arange(0x7C00, dtype=np.uint16).view("<f2").astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / 2
    scales = np.concatenate([halves, ties, np.nextafter(ties, 0), np.nextafter(ties, np.inf)])
    beyond = np.array([65505, 65520, 7e4, 1e9, 1e36], dtype=np.float32)
    x = np.zeros((scales.size + beyond.size, 32), dtype=np.float32)
    x[:, 5] = np.concatenate([scales, beyond]) * np.float32(127)
    weight = encode(np.full((1, 32), 127, dtype=np.float32), DType.Q8_0)  # 127, scale 1
    out = linear(native, weight, x, int8=True)
    with np.errstate(over="ignore"):
        kept = (x[:, 5] / np.float32(127)).astype(np.float16).astype(np.float32)
    kept = np.minimum(kept, HALF_MAX)
    np.testing.assert_array_equal(out[:, 0], np.float32(127 * 127) * kept)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_group_that_is_not_finite_is_nan(native: Any, value: float) -> None:
    weight = encode(np.ones((3, 64), dtype=np.float32), DType.Q8_0)
    x = np.ones((2, 64), dtype=np.float32)
    x[0, 40] = value
    out = linear(native, weight, x, int8=True)
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()


@pytest.mark.parametrize("dtype", [t for t in DType if not t.sparse])
@pytest.mark.parametrize("rows", [1, 16, 23])
def test_float_products(
    native: Any, dtype: DType, rows: int, noise_blocks: Callable[..., StoredTensor]
) -> None:
    rng = np.random.default_rng(rows)
    for cols in {1: (1, 7, 33, 128, 1030), 32: (32, 160, 1056), 256: (256, 1280)}[dtype.block]:
        if dtype.block > 1:
            weight = noise_blocks(dtype, (rows, cols), seed=rows, spread=1.0)
        else:
            weight = encode(rng.standard_normal((rows, cols)).astype(np.float32), dtype)
        for n in (1, 5, 6, 7, 13, 33):
            x = rng.standard_normal((n, cols)).astype(np.float32)
            out = linear(native, weight, x, int8=False)
            expected = x.astype(np.float64) @ to_f32(weight).astype(np.float64).T
            np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5 * max(1, cols / 80))
            for i in range(n):  # one alone has the bits that it has in company
                alone = linear(native, weight, x[i : i + 1].copy(), int8=False)
                np.testing.assert_array_equal(alone[0], out[i])


@pytest.mark.parametrize("dtype", [t for t in DType if t.block > 1 and not t.sparse])
def test_blocks_mean_what_they_mean_in_python(
    native: Any, dtype: DType, noise_blocks: Callable[..., StoredTensor]
) -> None:
    """To the last bit: each row times 1 in one column, scales of every size."""
    weight = noise_blocks(dtype, (33, 4 * dtype.block))
    columns = np.eye(4 * dtype.block, dtype=np.float32)
    out = linear(native, weight, columns, int8=False)
    np.testing.assert_array_equal(out.T, to_f32(weight))


def test_every_half_is_read_exactly(native: Any) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = bits[np.isfinite(bits.view("<f2"))]
    weight = StoredTensor(DType.F16, (finite.size, 1), finite.view(np.uint8))
    out = linear(native, weight, np.ones((1, 1), np.float32), int8=False)
    np.testing.assert_array_equal(out[0], finite.view("<f2").astype(np.float32))


@given(seed=WORDS, request=WORDS, position=WORDS)
def test_random_numbers_are_numpy_s(seed: int, request: int, position: int) -> None:
    assert load_native().uniform(seed, request, position) == uniform(seed, request, position)


def drawn(
    logits: Floats, s: SamplingSettings, position: int, seen: list[int], mask: Any
) -> int | str:
    try:
        values = sampling_values(s, logits.size)
        ids = np.array(seen, dtype=np.int32)
        token: int = load_native().sample(logits, values, position, ids, mask)
    except RuntimeError as error:
        return str(error.args[1])
    return token


def expected(
    logits: Floats, s: SamplingSettings, position: int, seen: list[int], mask: Any
) -> int | str:
    try:
        return sample(logits, s, position=position, seen=seen, mask=mask)
    except RequestError as error:
        return error.what


@pytest.mark.parametrize("seed", range(8))
def test_the_sampler_draws_what_the_oracle_draws(seed: int) -> None:
    rng = np.random.default_rng(seed)
    draws = set()
    for case in range(400):
        size = int(rng.choice([1, 2, 7, 50, 300, 512, 1500]))
        logits = (rng.standard_normal(size) * rng.choice([0.1, 1, 5, 40])).astype(np.float32)
        if case % 3 == 0:
            logits = np.round(logits)  # many ties
        if case % 7 == 0:
            logits[rng.integers(size)] = rng.choice([np.nan, np.inf, -np.inf])
        settings = SamplingSettings(
            temperature=float(rng.choice([0.0, 0.01, 0.5, 1.0, 3.0, 100.0])),
            top_k=int(rng.choice([0, 0, 1, 3, 40, 1000])),
            top_p=float(rng.choice([1.0, 0.999, 0.9, 0.3, 1e-6])),
            min_p=float(rng.choice([0.0, 0.0, 0.05, 0.7, 1.0])),
            repetition_penalty=float(rng.choice([1.0, 1.3, 0.5, 10.0])),
            logit_bias=tuple(
                (int(i), float(b))
                for i, b in zip(rng.integers(0, 400, 3), rng.standard_normal(3) * 9, strict=True)
            ),
            seed=int(rng.integers(1 << 62)),
            request=case,
        )
        seen = rng.integers(0, size, rng.integers(0, 20)).tolist()
        mask = rng.random(size) < 0.6 if case % 2 else None
        position = int(rng.integers(1 << 40))
        got = drawn(logits, settings, position, seen, mask)
        assert got == expected(logits, settings, position, seen, mask)
        draws.add(got)
    assert len(draws) > 50
