"""Rounding of activations: by hand, and in every place where the engine rounds."""

import torch

from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.decoder.fake_quant import round_activations, round_to_int8
from miudo.tensors import Role, tensor_table

CONFIG = ModelConfig.uniform(
    n_layers=2, d_model=64, n_heads=2, d_ff=96, vocab_size=64, max_positions=32
)


def test_rounding_by_hand() -> None:
    x = torch.zeros(1, 96)
    # Scale 1/8, exact in float16: halves go to the even number.
    x[0, 0], x[0, 1], x[0, 2] = 15.875, 0.0625, 0.1875
    x[0, 32] = -1e-3  # its own group, its own scale
    x[0, 64] = 12.7  # scale 0.1, which float16 has as 0.0999755859375
    rounded = round_to_int8(x)
    assert rounded[0, :3].tolist() == [15.875, 0.0, 0.25]
    torch.testing.assert_close(rounded[0, 32], torch.tensor(-1e-3), rtol=2**-6, atol=0.0)
    torch.testing.assert_close(rounded[0, 64], torch.tensor(127 * 0.0999755859375))
    assert float(rounded[0, 3:32].abs().max()) == 0.0


def test_multiplied_by_the_inverse_not_divided() -> None:
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 1] = 13.0, 0.6653543710708618  # 6.5 scales, or a little more
    quotient = x[0, 1] / (x[0, 0] / 127)
    product = x[0, 1] * (127 / x[0, 0])
    assert torch.round(quotient) != torch.round(product)  # or this test says nothing
    scale = (x[0, 0] / 127).half().float()
    assert round_to_int8(x)[0, 1] == torch.round(product) * scale


def test_scales_that_float16_does_not_have() -> None:
    tiny = torch.full((1, 32), 1e-39)  # 127 / amax overflows
    assert float(round_to_int8(tiny).abs().max()) == 0.0
    assert float(round_to_int8(torch.full((1, 32), 127 * 2.0**-25)).abs().max()) == 0.0
    smallest = torch.full((1, 32), 127 * 2.0**-24)
    torch.testing.assert_close(round_to_int8(smallest), smallest)
    great = torch.full((1, 32), 1e30)
    assert round_to_int8(great).eq(127 * 65504.0).all()
    for value in (float("nan"), float("inf")):
        x = torch.ones(1, 64)
        x[0, 3] = value
        assert round_to_int8(x)[0, :32].isnan().all()
        assert round_to_int8(x)[0, 32:].isfinite().all()


def test_every_quantised_matrix_is_rounded_before() -> None:
    matrices = [s.name for s in tensor_table(CONFIG) if s.role not in (Role.NORM, Role.BIAS)]
    ids = torch.arange(32)[None]
    plain = Decoder(CONFIG)
    plain.initialise(1)
    exact = plain.logits(plain(ids))
    for name in matrices:
        decoder = Decoder(CONFIG)
        decoder.initialise(1)
        round_activations(decoder, {name})
        assert not torch.equal(decoder.logits(decoder(ids)), exact), name
    decoder = Decoder(CONFIG)
    decoder.initialise(1)
    round_activations(decoder, set())
    assert torch.equal(decoder.logits(decoder(ids)), exact)
