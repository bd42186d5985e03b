"""Padded forms of a model give what the model gives."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from miudo.config import ModelConfig, Norm, Position, QkNorm
from miudo.decoder.decoder import Decoder
from miudo.formats.padding import paddings

IDS = torch.arange(12)[None] % 50


def uneven(**rest: object) -> Decoder:
    config = ModelConfig.uniform(
        n_layers=3, d_model=64, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=50, max_positions=16,
        **rest,
    )  # fmt: skip
    heads = ((4, 2), (3, 3), (2, 1))  # groups of 2, of 1, of 2
    layers = tuple(
        dataclasses.replace(layer, n_heads=h, n_kv_heads=k, d_ff=64 + 32 * i)
        for i, (layer, (h, k)) in enumerate(zip(config.layers, heads, strict=True))
    )
    decoder = Decoder(dataclasses.replace(config, layers=layers))
    decoder.initialise(3)
    with torch.no_grad():
        for name, value in decoder.named_parameters():
            if name.endswith("bias"):
                value.normal_(generator=torch.Generator().manual_seed(len(name)))
    return decoder


@pytest.mark.parametrize("bias", [False, True])
def test_every_form_gives_the_same(bias: bool) -> None:
    decoder = uneven(qkv_bias=bias, o_bias=bias, mlp_bias=bias)
    forms = list(paddings(decoder.config, decoder.to_weights()))
    assert [len(notes) for *_, notes in forms] == [0, 1, 2]
    last = forms[-1][0].layers
    assert {(c.n_heads, c.n_kv_heads, c.d_ff) for c in last} == {(6, 3, 128)}
    with torch.no_grad():
        expected = decoder.logits(decoder(IDS))
        for config, weights, _ in forms:
            padded = Decoder.from_weights(config, weights)
            torch.testing.assert_close(padded.logits(padded(IDS)), expected, rtol=1e-5, atol=1e-5)


def test_heads_become_d_model_together() -> None:
    config = ModelConfig.uniform(
        n_layers=2, d_model=64, n_heads=2, head_dim=16, d_ff=64, vocab_size=50, max_positions=16,
        position=Position.LEARNED, norm=Norm.LAYER, qkv_bias=True,
    )  # fmt: skip
    decoder = Decoder(config)
    decoder.initialise(1)
    *_, (wide, weights, notes) = paddings(config, decoder.to_weights())
    assert wide.layers[0].n_heads == 4
    assert notes == ("2 layers padded with zeros to 4 heads",)
    padded = Decoder.from_weights(wide, weights)
    with torch.no_grad():
        torch.testing.assert_close(padded.logits(padded(IDS)), decoder.logits(decoder(IDS)))


def test_what_would_not_be_exact_is_not_padded() -> None:
    decoder = uneven(qk_norm=QkNorm.FULL)
    forms = list(paddings(decoder.config, decoder.to_weights()))
    assert {c.n_heads for c in forms[-1][0].layers} == {4, 3, 2}
