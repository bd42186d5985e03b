"""Heads and hidden width: cutting what does nothing changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from miudo.compress.prune.heads import HeadPruning, HeadScore
from miudo.compress.prune.hidden import HiddenPruning
from miudo.config import Block as Placing
from miudo.config import LatentAttention, ModelConfig, Norm, Position, QkNorm
from miudo.decoder.decoder import Block, Decoder
from miudo.errors import CheckFailedError, ConfigError, DataError

Make = Callable[[str], Decoder]
KINDS = ("llama", "llama-untied", "gpt2", "qwen", "neox", "gemma")
# What is left sums in another order.
SAME = {"rtol": 1e-4, "atol": 2e-5}


def block(decoder: Decoder, index: int) -> Block:
    return cast("Block", decoder.layers[index])


def logits(decoder: Decoder, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = decoder.logits(decoder(ids))
        return found


def run(method: Any, decoder: Decoder, batches: Sequence[Tensor]) -> Decoder:
    made: Decoder = method.apply(decoder, method.calibrate(decoder, batches))[0]
    return made


@torch.no_grad()
def silence_heads(decoder: Decoder, heads: Sequence[int]) -> None:
    """Their values reach nobody."""
    for i, layer in enumerate(decoder.config.layers):
        o, size = block(decoder, i).attn.o.weight, layer.v_head_dim
        for head in heads:
            o[:, head * size : (head + 1) * size] = 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_that_adds_nothing_goes(kind: str, tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny(kind)
    layer = decoder.config.layers[0]
    size = layer.n_heads // layer.n_kv_heads
    silence_heads(decoder, range(size))  # group 0
    share = (layer.n_kv_heads - 1) / layer.n_kv_heads
    made = run(HeadPruning(groups=share), decoder, batches)
    new = made.config.layers[0]
    assert (new.n_heads, new.n_kv_heads) == (4 - size, layer.n_kv_heads - 1)
    assert block(made, 1).attn.k.weight.shape == (new.n_kv_heads * 16, 64)
    torch.testing.assert_close(logits(made, batches[0]), logits(decoder, batches[0]), **SAME)


@pytest.mark.parametrize("score", HeadScore)
def test_heads_go_in_equal_numbers_a_group(
    score: HeadScore, tiny: Make, batches: list[Tensor]
) -> None:
    decoder = tiny("llama")
    silence_heads(decoder, (1, 2))  # the second of group 0, the first of group 1
    if score is HeadScore.ACTIVATION:  # which does not look at o: silence what comes out too
        with torch.no_grad():
            for i in range(3):
                block(decoder, i).attn.o.weight[:, 16:48] = 0.0
    method = HeadPruning(groups=1.0, heads=0.5, score=score)
    statistics = method.calibrate(decoder, batches)
    if score is HeadScore.ACTIVATION:
        assert all(len(s) == 4 and s.min() > 0 for s in statistics.scores)
        return
    made = method.apply(decoder, statistics)[0]
    assert (made.config.layers[2].n_heads, made.config.layers[2].n_kv_heads) == (2, 2)
    torch.testing.assert_close(logits(made, batches[0]), logits(decoder, batches[0]), **SAME)


def test_scores_are_the_papers_and_the_outputs(tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny("llama")
    seen: list[Tensor] = []
    handle = block(decoder, 0).attn.o.register_forward_pre_hook(lambda _, a: seen.append(a[0]))
    for ids in batches:
        logits(decoder, ids)
    handle.remove()
    heads = torch.cat(seen).double().unflatten(-1, (4, 16))  # B T H V
    paper = heads.norm(dim=-1).mean(dim=1).square().sum(dim=0).sqrt()
    o = block(decoder, 0).attn.o.weight.detach().double()
    added = [
        (heads[:, :, h] @ o[:, h * 16 : h * 16 + 16].T).square().sum().sqrt() for h in range(4)
    ]
    for score, expected in ((HeadScore.ACTIVATION, paper), (HeadScore.OUTPUT, torch.stack(added))):
        found = HeadPruning(score=score).calibrate(decoder, batches).scores[0]
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


def test_no_head_is_cut_inside(tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny("qwen")
    made = run(HeadPruning(groups=1.0, heads=0.5), decoder, batches)
    assert made.config.layers[0].head_dim == decoder.config.layers[0].head_dim
    old, new = (block(d, 0).attn.q.weight.view(-1, 16, 64) for d in (decoder, made))
    for head in new:
        assert any(torch.equal(head, other) for other in old)


def test_norms_over_all_heads_are_refitted(batches: list[Tensor]) -> None:
    decoder = Decoder(
        ModelConfig.uniform(
            n_layers=2,
            d_model=64,
            n_heads=4,
            d_ff=64,
            vocab_size=96,
            max_positions=32,
            qk_norm=QkNorm.FULL,
        )
    )
    decoder.initialise(1)
    with torch.no_grad():
        for i in range(2):  # heads 0 and 2 are nothing: not even a part of the norm
            attn = block(decoder, i).attn
            for part in (attn.q, attn.k):
                part.weight.mul_(20.0).view(4, 16, 64)[[0, 2]] = 0.0
            attn.o.weight.view(64, 4, 16)[:, [0, 2]] = 0.0
    made = run(HeadPruning(), decoder, batches)
    torch.testing.assert_close(logits(made, batches[0]), logits(decoder, batches[0]), **SAME)


@pytest.mark.parametrize("rank", [None, 32])
def test_latent_attention_loses_heads_too(rank: int | None, batches: list[Tensor]) -> None:
    decoder = Decoder(
        ModelConfig.uniform(
            n_layers=2,
            d_model=64,
            n_heads=4,
            head_dim=24,
            d_ff=64,
            vocab_size=96,
            max_positions=32,
            rotary_dim=8,
            latent=LatentAttention(32, 8, rank),
        )
    )
    decoder.initialise(1)
    silence_heads(decoder, (0, 3))
    made = run(HeadPruning(), decoder, batches)
    assert made.config.layers[0].n_heads == 2
    torch.testing.assert_close(logits(made, batches[0]), logits(decoder, batches[0]), **SAME)


def test_a_head_of_its_own_is_a_group(tiny: Make, batches: list[Tensor]) -> None:
    made = run(HeadPruning(groups=1.0, heads=0.5), tiny("gpt2"), batches)
    assert (made.config.layers[0].n_heads, made.config.layers[0].n_kv_heads) == (2, 2)


def test_heads_that_cannot_be_counted_down(tiny: Make, batches: list[Tensor]) -> None:
    config = dataclasses.replace(
        tiny("llama").config,
        position=Position.ALIBI,
        layers=tuple(dataclasses.replace(c, rotary=False) for c in tiny("llama").config.layers),
    )
    with pytest.raises(ConfigError, match="ALiBi"):
        HeadPruning().calibrate(Decoder(config), batches)


# Hidden width.


@torch.no_grad()
def empty_channels(decoder: Decoder, gone: Tensor) -> None:
    """Nothing is ever written to the channels `gone`; what is, has no mean for a norm to take."""
    kept = torch.ones(64, dtype=torch.bool)
    kept[gone] = False
    centred = decoder.config.norm is Norm.LAYER
    for name, value in decoder.named_parameters():
        if name in ("embed.weight", "position.weight"):
            value.mul_(50.0)  # beside which a norm's eps is nothing
            value[:, gone] = 0.0
            if centred:
                value[:, kept] -= value[:, kept].mean(dim=1, keepdim=True)
        elif ".o." in name or ".down." in name:
            value.mul_(50.0 if decoder.config.block is Placing.SANDWICH else 1.0)  # as above
            value[gone] = 0.0
            if centred:
                value[kept] -= value[kept].mean(dim=0, keepdim=True)
        elif "norm" in name and len(value) == 64:
            value.mul_(torch.rand(64, generator=torch.Generator().manual_seed(5)) + 0.5)
            value[gone] = 0.0
    # A tied table that is centred leaves the head less to say, and that is all.


@pytest.mark.parametrize("kind", KINDS)
def test_channels_that_are_zero_everywhere_go(kind: str, tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny(kind)
    gone = torch.randperm(64, generator=torch.Generator().manual_seed(2))[:32]
    empty_channels(decoder, gone)
    made = run(HiddenPruning(), decoder, batches)
    assert made.config.d_model == 32
    assert {p.shape[-1] for n, p in made.named_parameters() if n == "embed.weight"} == {32}
    torch.testing.assert_close(logits(made, batches[0]), logits(decoder, batches[0]), **SAME)


def test_gemmas_scale_stays_the_root_of_d_model(tiny: Make, batches: list[Tensor]) -> None:
    made = run(HiddenPruning(), tiny("gemma"), batches)
    assert made.config.embed_scale == pytest.approx(32**0.5)


def test_latent_attention_and_its_own_norms(batches: list[Tensor]) -> None:
    decoder = Decoder(
        ModelConfig.uniform(
            n_layers=2,
            d_model=64,
            n_heads=4,
            head_dim=24,
            d_ff=64,
            vocab_size=96,
            max_positions=32,
            rotary_dim=8,
            latent=LatentAttention(64, 8, 64),
        )
    )
    decoder.initialise(1)
    gone = torch.arange(0, 64, 2)
    with torch.no_grad():
        decoder.embed.weight.mul_(50.0)[:, gone] = 0.0
        for i in range(2):
            block(decoder, i).attn.o.weight[gone] = 0.0
            block(decoder, i).mlp.down.weight[gone] = 0.0
    made = run(HiddenPruning(), decoder, batches)
    torch.testing.assert_close(logits(made, batches[0]), logits(decoder, batches[0]), **SAME)


def test_a_gain_keeps_the_root_mean_square(tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny("llama")
    method = HiddenPruning()
    statistics = method.calibrate(decoder, batches)
    made = method.apply(decoder, statistics)[0]
    channels = list(method.origin(decoder, statistics).channels or ())
    with torch.no_grad():
        x = decoder.embed(torch.cat(batches))
        before = block(decoder, 0).attn_norm(x)[..., channels]
        after = block(made, 0).attn_norm(x[..., channels])
    assert float(after.square().mean()) == pytest.approx(
        float(before.square().mean()), rel=0.02
    )  # eps


@pytest.mark.parametrize("method", [HiddenPruning(), HeadPruning()])
def test_text_is_needed(method: HiddenPruning | HeadPruning, tiny: Make) -> None:
    with pytest.raises(DataError, match="no tokens"):
        method.calibrate(tiny("llama"), [])
    with pytest.raises(DataError, match="calibrat"):
        method.apply(tiny("llama"))


def test_a_layer_that_gives_nothing_is_named(tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny("llama")
    with torch.no_grad():
        block(decoder, 1).attn.v.weight.zero_()
    with pytest.raises(CheckFailedError, match=r"layers\.1\.attn\.o.*energy of 0\.0"):
        HeadPruning().calibrate(decoder, batches)
