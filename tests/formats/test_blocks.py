"""Every number type, both ways: bits, errors, and how much memory a conversion takes."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from miudo.cli.options import BLOCK_TYPES
from miudo.errors import ConfigError
from miudo.formats.block_codec import pack, unpack
from miudo.formats.blocks import WRITABLE, encode, f32_chunks, is_finite, largest, recode, to_f32
from miudo.tensors import DType, StoredTensor

BLOCKS = tuple(dtype for dtype in DType if dtype.block > 1 and not dtype.sparse)
ENCODED = tuple(dtype for dtype in WRITABLE if dtype.block > 1)

# CRC-32 of what `noise_blocks` means as float32; tests/parity finds the same bits in gguf's.
MEANT = {
    DType.Q8_0: 0x103FE19E, DType.Q4_0: 0x064DE0EC, DType.Q4_1: 0x122A46AD,
    DType.Q5_0: 0xEDA57405, DType.Q5_1: 0x0E52F30B, DType.Q2_K: 0xD46478A1,
    DType.Q3_K: 0x8C9BD5B7, DType.Q4_K: 0x03C2E940, DType.Q5_K: 0x25E15EA9,
    DType.Q6_K: 0xC467F410, DType.IQ4_NL: 0x09F3500D, DType.IQ4_XS: 0xDFAE7B0D,
    DType.MXFP4: 0x043B25FA, DType.TQ1_0: 0xD5F6308E, DType.TQ2_0: 0x98961DDF,
}  # fmt: skip
# Root mean square error of each type on normal noise, in standard deviations, from above.
WORST = {
    DType.Q8_0: 0.0055, DType.Q6_K: 0.0171, DType.Q5_1: 0.039, DType.Q5_0: 0.044,
    DType.Q5_K: 0.035, DType.Q4_1: 0.079, DType.Q4_K: 0.071, DType.Q4_0: 0.087,
    DType.IQ4_NL: 0.074, DType.IQ4_XS: 0.075, DType.Q3_K: 0.146, DType.Q2_K: 0.267,
    DType.TQ1_0: 0.446, DType.TQ2_0: 0.446,
}  # fmt: skip
Noise = Callable[..., StoredTensor]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", BLOCKS)
def test_every_bit_of_a_block_is_understood(dtype: DType, noise_blocks: Noise) -> None:
    values = to_f32(noise_blocks(dtype, (40, dtype.block)))
    assert np.isfinite(values).all()
    assert zlib.crc32(values.tobytes()) == MEANT[dtype]


@pytest.mark.parametrize("dtype", ENCODED)
def test_the_error_is_what_the_bits_allow(dtype: DType) -> None:
    values = normal(64, 512)
    stored = encode(values, dtype)
    assert stored.data.size == dtype.size_bytes(values.shape)
    error = float(np.sqrt(np.mean((to_f32(stored) - values) ** 2)))
    assert 0.9 * WORST[dtype] < error < WORST[dtype]


@pytest.mark.parametrize("dtype", ENCODED)
def test_blocks_of_nothing_and_of_one_value(dtype: DType) -> None:
    values = np.zeros((7, 256), dtype=np.float32)
    values[1] = 3.0
    values[2] = -0.75
    values[3] = 1e-30  # a scale that is 0 in float16
    values[4] = 1e-42  # whose reciprocal is infinite
    values[5, 17] = -60000.0
    values[6] = np.linspace(2.0, 3.0, 256)
    back = to_f32(encode(values, dtype))
    assert np.isfinite(back).all()
    assert not back[[0, 3, 4]].any()
    np.testing.assert_allclose(back[1:3], values[1:3], rtol=2e-3)
    assert back[5, 17] == pytest.approx(-60000, rel=0.04)
    step = {DType.Q2_K: 0.5, DType.TQ1_0: 0.6, DType.TQ2_0: 0.6}.get(dtype, 3.0 / 15)
    np.testing.assert_allclose(back[6], values[6], atol=step)


@pytest.mark.parametrize(
    "dtype", [DType.Q4_0, DType.Q5_0, DType.Q3_K, DType.Q6_K, DType.Q8_0, DType.TQ1_0, DType.TQ2_0]
)
def test_types_without_an_offset_keep_zeros(dtype: DType) -> None:
    values = normal(16, 256)
    values[:, ::3] = 0
    assert not to_f32(encode(values, dtype))[:, ::3].any()


@pytest.mark.parametrize("dtype", [t for t in ENCODED if t.block == 32 and t is not DType.IQ4_NL])
def test_rounding_again_changes_nothing(dtype: DType) -> None:
    once = encode(normal(16, 256), dtype)
    np.testing.assert_array_equal(encode(to_f32(once), dtype).data, once.data)


@pytest.mark.parametrize("dtype", [t for t in DType if not t.sparse])
def test_chunks_are_the_whole_in_order(dtype: DType, noise_blocks: Noise) -> None:
    n = (1 << 18) // dtype.block + 3
    shape = (n, dtype.block)
    tensor = noise_blocks(dtype, shape) if dtype.block > 1 else encode(normal(n, 1), dtype)
    chunks = list(f32_chunks(tensor))
    assert len(chunks) > 1
    np.testing.assert_array_equal(np.concatenate(chunks), to_f32(tensor).reshape(-1))


def test_a_tensor_of_chunks_is_encoded_as_in_one_go() -> None:
    values = normal(700, 512)
    for dtype in WRITABLE:
        parts = [encode(row[None], dtype).data for row in values[[0, 1, 350, 699]]]
        whole = encode(values, dtype).data.reshape(700, -1)
        np.testing.assert_array_equal(whole[[0, 1, 350, 699]], np.stack(parts))


def test_threads_give_the_bytes_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = normal(4100, 512)  # some chunks for each of three, the last one short
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    alone = {dtype: encode(values, dtype).data for dtype in (DType.BF16, DType.Q8_0)}
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    for dtype, data in alone.items():
        np.testing.assert_array_equal(encode(values, dtype).data, data)


def test_halves_go_away_from_zero_at_8_bits() -> None:
    values = np.zeros((1, 32), dtype=np.float32)
    values[0, :9] = [127, 0.5, -0.5, 1.5, -2.5, 0.49999997, -126.5, 3.49, -1.5]
    q = encode(values, DType.Q8_0).data[2:].view(np.int8)
    assert q[:9].tolist() == [127, 1, -1, 2, -3, 0, -127, 3, -2]


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16, DType.Q8_0])
def test_the_greatest_magnitude_is_found_whatever_its_sign(dtype: DType) -> None:
    values = normal(300, 320)
    for sign in (1, -1):
        values[299, 7] = 64 * sign
        assert largest(encode(values, dtype)) == pytest.approx(64, rel=1e-2)
    assert largest(encode(np.zeros((0, 32), np.float32), dtype)) == 0


@pytest.mark.parametrize("dtype", [DType.BF16, DType.Q4_0, DType.Q6_K])
def test_a_conversion_holds_no_tensor_of_floats(dtype: DType) -> None:
    tensor = encode(normal(2048, 1024), DType.F16)
    tracemalloc.start()
    made = recode(tensor, dtype)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < made.data.size + (6 << 20)  # the floats alone: 8 MiB


@pytest.mark.parametrize("dtype", BLOCKS)
def test_a_scale_that_is_not_finite_is_found(
    dtype: DType, noise_blocks: Noise, block_scales: Mapping[DType, tuple[int, ...]]
) -> None:
    whole = noise_blocks(dtype, (30, dtype.block))
    assert is_finite(whole)
    for at in block_scales.get(dtype, ()):
        for bits in (0x7C00, 0xFC00, 0x7E01):
            data = whole.data.copy().reshape(30, -1)
            data[13, at : at + 2] = np.array([bits], dtype="<u2").view(np.uint8)
            assert not is_finite(StoredTensor(dtype, whole.shape, data.reshape(-1)))
    if dtype is DType.MXFP4:
        data = whole.data.copy()
        data[:2] = 253, 0x77
        broken = StoredTensor(dtype, whole.shape, data)
        assert not np.isfinite(to_f32(broken)).all()
        assert not is_finite(broken)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
def test_a_number_that_is_not_finite_is_found(dtype: DType, value: float) -> None:
    values = normal(300, 300)
    assert is_finite(encode(values, dtype))
    values[299, 7] = value
    assert not is_finite(encode(values, dtype))


def test_what_cannot_be_written_is_refused() -> None:
    for dtype in sorted(set(DType) - set(WRITABLE)):
        with pytest.raises(ConfigError, match=f"{dtype} is only read.*Q4_K"):
            encode(normal(1, 256), dtype)
    with pytest.raises(ConfigError, match="do not fit Q6_K"):
        encode(normal(1, 128), DType.Q6_K)


def test_planes_of_bits_go_both_ways() -> None:
    rng = np.random.default_rng(2)
    for bits in (1, 2, 4):
        for width in (1, 4, 16, 32):
            numbers = rng.integers(0, 1 << bits, (5, width * 8), dtype=np.uint8)
            packed = pack(numbers, width, bits)
            assert packed.shape == (5, width * bits)
            np.testing.assert_array_equal(unpack(packed, width, bits), numbers)
    assert pack(np.array([[1, 2, 3, 4]], dtype=np.uint8), 2, 4).tolist() == [[0x31, 0x42]]


def test_the_command_line_offers_what_can_be_written() -> None:
    assert set(BLOCK_TYPES) == set(ENCODED)
