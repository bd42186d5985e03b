"""Samples packed into one row: each is computed as if it were alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from miudo.config import (
    Activation,
    Block,
    LatentAttention,
    Mlp,
    ModelConfig,
    Norm,
    Position,
    QkNorm,
)
from miudo.decoder.attention import Capture
from miudo.decoder.decoder import Decoder
from miudo.decoder.masks import causal_mask, segment_positions

# float32 sums over masked zeros, in another order; logits are of size 1.
ALONE = 1e-5
SHAPE: dict[str, Any] = {
    "vocab_size": 64, "d_model": 32, "n_layers": 3, "n_heads": 2, "d_ff": 48, "max_positions": 64,
}  # fmt: skip
LEARNED: dict[str, Any] = {
    "norm": Norm.LAYER, "norm_bias": True, "position": Position.LEARNED, "mlp": Mlp.PLAIN,
    "activation": Activation.GELU_TANH, "qkv_bias": True,
}  # fmt: skip


def made(**changes: Any) -> ModelConfig:
    return ModelConfig.uniform(**SHAPE | changes)


def in_part(config: ModelConfig, rotary_dim: int, **changes: Any) -> ModelConfig:
    layers = tuple(replace(layer, rotary_dim=rotary_dim) for layer in config.layers)
    return replace(config, layers=layers, **changes)


KINDS = {
    "rotary": made(),
    "grouped": made(n_kv_heads=1, qk_norm=QkNorm.HEAD),
    "window": made(window=4),
    "learned": made(**LEARNED),
    "alibi": made(position=Position.ALIBI),
    "alibi in a window": made(position=Position.ALIBI, window=4),
    "alibi capped": made(position=Position.ALIBI, attn_softcap=0.5),
    "capped in a window": made(attn_softcap=0.5, window=4),
    "part of a head": in_part(made(qk_norm=QkNorm.FULL, block=Block.POST), 6),
    "latent": in_part(made(), 6, latent=LatentAttention(kv_rank=10, rope_dim=6, q_rank=12)),
}
SIZES = ((7, 12, 1, 11), (31,), (2, 3, 3, 20))
LENGTH = 31


def make(kind: str) -> Decoder:
    decoder = Decoder(KINDS[kind])
    decoder.initialise(2)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return decoder.eval()


def packed() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and segments [3, 31]; what is left of the last row is a segment of its own."""
    ids = torch.randint(0, 64, (len(SIZES), LENGTH), generator=torch.Generator().manual_seed(1))
    rows = []
    for sizes in SIZES:
        row = [i + 1 for i, size in enumerate(sizes) for _ in range(size)]
        rows.append(row + [0] * (LENGTH - len(row)))
    return ids, torch.tensor(rows)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_packed_sample_has_the_logits_it_has_alone(kind: str) -> None:
    decoder = make(kind)
    ids, segments = packed()
    with torch.no_grad():
        found = decoder.logits(decoder(ids, segments=segments))
        for row, sizes in enumerate(SIZES):
            start = 0
            for size in sizes:
                piece = ids[row : row + 1, start : start + size]
                alone = decoder.logits(decoder(piece))[0]
                torch.testing.assert_close(
                    found[row, start : start + size], alone, atol=ALONE, rtol=0
                )
                start += size


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_change_in_one_sample_moves_no_bit_of_another(kind: str) -> None:
    decoder = make(kind)
    ids, segments = packed()
    other = ids.clone()
    other[0, 7:19] = (other[0, 7:19] + 9) % 64  # the second sample of the first row
    with torch.no_grad():
        one, two = decoder(ids, segments=segments), decoder(other, segments=segments)
    outside = torch.ones_like(ids, dtype=torch.bool)
    outside[0, 7:19] = False
    assert torch.equal(one[outside], two[outside])
    assert not torch.equal(one[0, 7:19], two[0, 7:19])


def test_one_segment_is_the_ordinary_row() -> None:
    decoder = make("rotary")
    ids, _ = packed()
    with torch.no_grad():
        plain, one = decoder(ids), decoder(ids, segments=torch.zeros_like(ids))
    torch.testing.assert_close(one, plain, atol=ALONE, rtol=0)


@pytest.mark.parametrize("kind", list(KINDS))
def test_captured_attention_stays_inside_its_sample(kind: str) -> None:
    decoder = make(kind)
    ids, segments = packed()
    capture = Capture(want_attention=True)
    with torch.no_grad():
        shown = decoder(ids, segments=segments, capture=capture)
        unseen = decoder(ids, segments=segments)
    torch.testing.assert_close(shown, unseen, atol=ALONE, rtol=0)
    apart = segments[:, None, :, None] != segments[:, None, None, :]
    for weights in capture.attention:
        assert not weights.masked_select(apart.expand_as(weights)).any()


def test_positions_begin_anew() -> None:
    segments = torch.tensor([[1, 1, 2, 2, 2, 0], [5, 5, 5, 5, 5, 5]])
    assert segment_positions(segments).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]
    mask = causal_mask(torch.arange(6), 6, 2, segments)
    assert mask.shape == (2, 1, 6, 6)
    assert mask[0, 0, 4].tolist() == [False, False, False, True, True, False]
    assert mask[0, 0, 2].tolist() == [False, False, True, False, False, False]
