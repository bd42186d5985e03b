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
    x = torch.zeros(1, 64)
    x[0, 0], x[0, 1], x[0, 2] = 12.7, 0.05, 0.15  # scale 0.1: halves go to the even number
    x[0, 32] = -1e-3  # its own group, its own scale
    rounded = round_to_int8(x)
    torch.testing.assert_close(rounded[0, :3], torch.tensor([12.7, 0.0, 0.2]))
    torch.testing.assert_close(rounded[0, 32], torch.tensor(-1e-3))
    assert float(rounded[0, 3:32].abs().max()) == 0.0


def test_exact_halves_and_tiny_scales_round_as_the_engine_does() -> None:
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 1], x[0, 2] = 889.0, 157.5, 164.5  # scale 7: 22.5 and 23.5 go to even
    torch.testing.assert_close(round_to_int8(x)[0, :3], torch.tensor([889.0, 154.0, 168.0]))
    tiny = torch.full((1, 32), 1e-39)  # 1 / scale would overflow
    assert torch.isfinite(round_to_int8(tiny)).all()


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
