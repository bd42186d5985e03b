"""8-bit rounding: what the decoder computes is what the file holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miudo.compress.quantize.nearest import NearestRounding
from miudo.config import ModelConfig, Position
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError
from miudo.formats.blocks import WRITABLE, to_f32
from miudo.tensors import DType, StoredTensor


def made(**rest: object) -> Decoder:
    values: dict[str, object] = {
        "n_layers": 2, "d_model": 64, "n_heads": 2, "d_ff": 96, "vocab_size": 50,
        "max_positions": 32,
    }  # fmt: skip
    decoder = Decoder(ModelConfig.uniform(**(values | rest)))
    decoder.initialise(1)
    return decoder


def values(weights: dict[str, StoredTensor], name: str) -> np.ndarray:
    return to_f32(weights[name])


def test_matrices_are_q8_norms_are_f32() -> None:
    _, report = NearestRounding().apply(made())
    dtypes = report.stored_dtypes()
    assert dtypes["embed.weight"] is DType.Q8_0
    assert dtypes["layers.1.mlp.down.weight"] is DType.Q8_0
    assert "norm.weight" not in dtypes
    assert report.notes == ()


def test_rows_that_do_not_fit_stay_f16_and_are_named() -> None:
    # 172 is the width of a real small model: 5 blocks of 32 and 12 over.
    _, report = NearestRounding().apply(made(d_ff=172))
    dtypes = report.stored_dtypes()
    assert dtypes["layers.0.mlp.down.weight"] is DType.F16
    assert dtypes["layers.0.mlp.up.weight"] is DType.Q8_0
    note = "layers.0-1.mlp.down.weight is F16: rows of 172 are no whole blocks of 32"
    assert report.notes == (note,)


def test_rows_that_fit_no_blocks_of_256_get_larger_ones_of_32() -> None:
    _, report = NearestRounding(DType.Q4_K).apply(made(d_model=256))
    dtypes = report.stored_dtypes()
    assert dtypes["layers.0.mlp.down.weight"] is DType.Q5_0
    assert dtypes["layers.0.mlp.up.weight"] is DType.Q4_K
    note = "layers.0-1.mlp.down.weight is Q5_0: rows of 96 are no whole blocks of 256"
    assert report.notes == (note,)


def test_a_position_table_stays_f16() -> None:
    _, report = NearestRounding().apply(made(position=Position.LEARNED))
    assert report.stored_dtypes()["position.weight"] is DType.F16
    assert "does not tolerate" in report.notes[0]


@pytest.mark.parametrize("dtype", [t for t in WRITABLE if t is not DType.F32])
def test_the_file_holds_the_decoders_values_to_the_bit(dtype: DType) -> None:
    decoder = made(d_model=256)
    rounded, report = NearestRounding(dtype).apply(decoder)
    inside = rounded.to_weights()
    stored, again = NearestRounding(dtype).store(decoder)
    assert again == report
    assert stored["layers.0.mlp.up.weight"].dtype is dtype
    for name, tensor in stored.items():
        assert tensor.dtype is report.stored_dtypes().get(name, DType.F32)
        np.testing.assert_array_equal(to_f32(tensor), values(inside, name), err_msg=name)


def test_rounding_again_changes_nothing() -> None:
    once, first = NearestRounding().apply(made())
    twice, second = NearestRounding().apply(once)
    assert first == second
    for a, b in zip(once.parameters(), twice.parameters(), strict=True):
        assert torch.equal(a, b)


def test_error_is_at_most_half_a_step() -> None:
    decoder = made()
    rounded, _ = NearestRounding().apply(decoder)
    before = decoder.embed.weight.detach().reshape(-1, 32)
    after = rounded.embed.weight.detach().reshape(-1, 32)
    step = before.abs().amax(1, keepdim=True) / 127
    # The scale is itself rounded to float16: 127 of its half-units in the last place, 2^-11.
    allowed = step * (0.5 + 127 * 2.0**-11)
    assert bool(((before - after).abs() <= allowed).all())
    assert not torch.equal(before, after)


def test_true_bits_per_weight() -> None:
    decoder = made()
    _, report = NearestRounding().apply(decoder)
    norms = sum(p.numel() for n, p in decoder.named_parameters() if "norm" in n)
    rest = report.parameters_after - norms
    assert report.bits_per_weight == pytest.approx(
        (rest * 8.5 + norms * 32) / report.parameters_after
    )


def test_values_beyond_float16_stay_f32_and_are_named() -> None:
    decoder = made()
    with torch.no_grad():
        decoder.layers[0].mlp.up.weight[3, 4] = 1e6
    rounded, report = NearestRounding().apply(decoder)
    assert report.notes == (
        "layers.0.mlp.up.weight is F32: it holds values beyond float16's range",
    )
    assert torch.equal(rounded.layers[0].mlp.up.weight, decoder.layers[0].mlp.up.weight)


@pytest.mark.parametrize("dtype", [DType.F32, DType.MXFP4])
def test_a_type_without_a_rule_is_refused(dtype: DType) -> None:
    with pytest.raises(ConfigError, match=f"{dtype}.*Q4_K"):
        NearestRounding(dtype)
