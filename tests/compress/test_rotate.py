"""A rotated model is the same model: equal logits, unequal weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from miudo.compress.quantize.rotate import hadamard, rotate
from miudo.config import LatentAttention, LayerConfig, Mlp, ModelConfig, Norm, Parallel
from miudo.decoder.decoder import Decoder

Make = Callable[[str], Decoder]
# What SpinQuant's own check allows for merges; float64 merging comes far nearer.
SAME = 1e-3


def unlike(decoder: Decoder) -> Decoder:
    """Gains and biases away from 1 and 0, else a fold that forgets them would pass."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for value in decoder.parameters():
            if value.dim() == 1:
                value.add_(torch.randn(value.shape, generator=generator) * 0.3)
    return decoder


def logits(decoder: Decoder, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return decoder.logits(decoder(ids))


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gpt2", "qwen"])
def test_logits_stay(kind: str, tiny: Make, batches: list[Tensor]) -> None:
    decoder = unlike(tiny(kind))
    made = rotate(decoder, 3)
    torch.testing.assert_close(
        logits(made.decoder, batches[0]), logits(decoder, batches[0]), rtol=0, atol=SAME / 10
    )
    residual = kind == "llama-untied"
    assert ("not the residual stream" in made.note) is not residual
    for name, value in decoder.named_parameters():
        turned = dict(made.decoder.named_parameters())[name]
        if ".attn.v.weight" in name or ".attn.o.weight" in name:
            assert not torch.allclose(value, turned, atol=1e-3), name
        elif "embed" in name:
            assert torch.equal(value, turned) is not residual


@pytest.mark.parametrize(
    "rest",
    [
        {"parallel": Parallel.ONE_NORM, "mlp_bias": True, "o_bias": True, "qkv_bias": True},
        {"parallel": Parallel.TWO_NORMS, "mlp": Mlp.PLAIN},
        {"norm_weight": False, "tie_embeddings": True},
        {"residual_scale": 0.7, "embed_scale": 3.0, "n_kv_heads": 1, "d_model": 96},
        {"norm": Norm.LAYER, "n_kv_heads": 2},
    ],
)
def test_logits_stay_in_other_shapes(rest: dict[str, object], batches: list[Tensor]) -> None:
    values: dict[str, object] = {
        "n_layers": 2, "d_model": 64, "n_heads": 4, "head_dim": 24, "d_ff": 96, "vocab_size": 96,
        "max_positions": 48, "tie_embeddings": False,
    }  # fmt: skip
    decoder = Decoder(ModelConfig.uniform(**(values | rest)))
    decoder.initialise(2)
    unlike(decoder)
    made = rotate(decoder, 5)
    torch.testing.assert_close(
        logits(made.decoder, batches[0]), logits(decoder, batches[0]), rtol=0, atol=SAME / 10
    )
    assert ("not the residual" in made.note) is ("norm" in rest)


def test_logits_stay_with_latent_attention(batches: list[Tensor]) -> None:
    layer = LayerConfig(n_heads=4, n_kv_heads=4, head_dim=24, v_head_dim=16, d_ff=64, rotary_dim=8)
    config = ModelConfig(
        vocab_size=96, d_model=64, max_positions=48, layers=(layer, layer), tie_embeddings=False,
        latent=LatentAttention(kv_rank=32, rope_dim=8, q_rank=24),
    )  # fmt: skip
    decoder = Decoder(config)
    decoder.initialise(2)
    unlike(decoder)
    made = rotate(decoder, 5)
    torch.testing.assert_close(
        logits(made.decoder, batches[0]), logits(decoder, batches[0]), rtol=0, atol=SAME / 10
    )
    assert "and the residual stream" in made.note


@pytest.mark.parametrize("size", [1, 2, 64, 96, 24, 7])
def test_a_random_hadamard_matrix_is_orthogonal_with_even_entries(size: int) -> None:
    turn = hadamard(size, torch.Generator().manual_seed(0))
    torch.testing.assert_close(turn @ turn.T, torch.eye(size, dtype=torch.float64))
    part = size & -size
    entries = turn[turn != 0].abs()
    torch.testing.assert_close(entries, torch.full_like(entries, part**-0.5))
    assert entries.numel() == size * part


def test_an_outlier_channel_is_spread(tiny: Make) -> None:
    decoder = tiny("llama-untied")
    with torch.no_grad():
        decoder.layers[0].mlp.up.weight[:, 5] *= 50
    made = rotate(decoder, 1).decoder

    def crest(weight: Tensor) -> float:
        return float(weight.abs().max() / weight.square().mean().sqrt())

    before, after = (m.layers[0].mlp.up.weight.detach() for m in (decoder, made))
    assert crest(after) < 0.5 * crest(before)


def test_the_seed_decides(tiny: Make) -> None:
    one, same, other = (rotate(tiny("llama-untied"), s).decoder for s in (1, 1, 2))
    assert torch.equal(one.embed.weight, same.embed.weight)
    assert not torch.equal(one.embed.weight, other.embed.weight)
    assert dataclasses.asdict(one.config) == dataclasses.asdict(tiny("llama-untied").config)
