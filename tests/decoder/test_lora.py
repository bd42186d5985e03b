"""A side path that starts as nothing, learns alone, and merges to the same model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miudo.adapter import Adapter, LowRank
from miudo.config import Activation, Mlp, ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.decoder.lora import (
    TARGETS,
    LoraSettings,
    LowRankLinear,
    add_lora,
    apply_adapter,
    merge,
    to_adapter,
)
from miudo.errors import ConfigError, ModelFileError
from miudo.train.loss import cross_entropy

# float32: one product of rank 4 more, logits near 1.
MERGED = 1e-5
CONFIG = ModelConfig.uniform(
    vocab_size=64, d_model=32, n_layers=2, n_heads=2, d_ff=64, max_positions=16
)
IDS = torch.arange(22).reshape(2, 11) * 5 % 64


def make(config: ModelConfig = CONFIG) -> Decoder:
    decoder = Decoder(config)
    decoder.initialise(3)
    return decoder.eval()


def logits(decoder: Decoder) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = decoder.logits(decoder(IDS))
    return found


def learned(decoder: Decoder, settings: LoraSettings) -> Decoder:
    add_lora(decoder, settings, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("lora_up"):
                parameter.normal_(0.0, 0.3, generator=generator)
    return decoder


@pytest.mark.parametrize("targets", [(), ("q", "v"), ("down",)])
def test_a_fresh_side_path_changes_nothing(targets: tuple[str, ...]) -> None:
    before = logits(make())
    adapted = add_lora(make(), LoraSettings(rank=4, targets=targets), 0)
    assert torch.equal(logits(adapted), before)
    sides = [n for n, m in adapted.named_modules() if isinstance(m, LowRankLinear)]
    wanted = set(targets) or {"q", "k", "v", "o", "gate", "up", "down"}
    assert {n.rpartition(".")[2] for n in sides} == wanted
    assert len(sides) == 2 * len(wanted)


def test_every_matrix_that_a_model_has_can_be_a_target(config: ModelConfig) -> None:
    for name, _ in make(config).layers.named_modules():
        part = name.rpartition(".")[2]
        if isinstance(make(config).layers.get_submodule(name), torch.nn.Linear):
            assert part in TARGETS
            adapted = add_lora(make(config), LoraSettings(rank=1, targets=(part,)), 0)
            assert isinstance(adapted.layers.get_submodule(name), LowRankLinear)


def test_it_computes_what_the_paper_says() -> None:
    base = torch.nn.Linear(5, 7)
    side = LowRankLinear(base, torch.randn(3, 5), torch.randn(7, 3), 0.5)
    x = torch.randn(2, 4, 5, requires_grad=True)
    found = side(x)
    wanted = x @ (base.weight + 0.5 * side.lora_up @ side.lora_down).T + base.bias
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(side(x[0]), wanted[0], atol=1e-5, rtol=0)
    outer, learnt = torch.randn(2, 4, 7), (x, side.lora_down, side.lora_up)
    gradients = torch.autograd.grad(found, learnt, outer)
    for one, other in zip(gradients, torch.autograd.grad(wanted, learnt, outer), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_only_the_side_paths_take_gradients() -> None:
    decoder = learned(make(), LoraSettings(rank=4))
    cross_entropy(decoder, IDS)[0].backward()
    for name, parameter in decoder.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
        if parameter.grad is not None:
            assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("stabilised", [False, True])
def test_merging_gives_the_same_model(stabilised: bool) -> None:
    settings = LoraSettings(rank=4, alpha=6.0, rank_stabilised=stabilised)
    assert settings.scale == (3.0 if stabilised else 1.5)
    decoder = learned(make(), settings)
    before = logits(decoder)
    assert float((before - logits(make())).abs().max()) > 1000 * MERGED
    merged = merge(decoder)
    torch.testing.assert_close(logits(merged), before, atol=MERGED, rtol=0)
    assert not any(isinstance(m, LowRankLinear) for m in merged.modules())
    assert all(p.requires_grad for p in merged.parameters())
    again = Decoder.from_weights(CONFIG, merged.to_weights())
    assert torch.equal(logits(again.eval()), logits(merged))


def test_ties_stay_tied() -> None:
    merged = merge(learned(make(), LoraSettings(rank=2)))
    assert merged.head is None
    assert "head.weight" not in merged.to_weights()
    assert torch.equal(merged.embed.weight, make().embed.weight)


def test_a_pruning_mask_survives_where_asked() -> None:
    decoder = make()
    with torch.no_grad():
        decoder.layers[0].mlp.up.weight[:, ::2] = 0.0
    adapted = learned(decoder, LoraSettings(rank=4))
    kept = merge(apply_adapter(make_like(decoder), to_adapter(adapted)), keep_zeros=True)
    plain = merge(adapted)
    assert int((kept.layers[0].mlp.up.weight == 0).sum()) == 64 * 16
    assert int((plain.layers[0].mlp.up.weight == 0).sum()) == 0
    a, b = kept.layers[0].mlp.up.weight[:, 1::2], plain.layers[0].mlp.up.weight[:, 1::2]
    assert torch.equal(a, b)


def make_like(decoder: Decoder) -> Decoder:
    return Decoder.from_weights(decoder.config, decoder.to_weights()).eval()


def test_an_adapter_goes_out_and_comes_back() -> None:
    decoder = learned(make(), LoraSettings(rank=4, targets=("q", "up")))
    adapter = to_adapter(decoder, base="b", tokenizer="t")
    assert (adapter.base, adapter.tokenizer) == ("b", "t")
    assert set(adapter.parts) == {
        f"layers.{i}.{name}.weight" for i in (0, 1) for name in ("attn.q", "mlp.up")
    }
    assert torch.equal(logits(apply_adapter(make(), adapter)), logits(decoder))


def test_the_seed_alone_decides_the_beginning() -> None:
    one, same, other = (
        to_adapter(add_lora(make(), LoraSettings(), seed)).parts for seed in (1, 1, 2)
    )
    name = "layers.1.mlp.down.weight"
    assert np.array_equal(one[name].down, same[name].down)
    assert not np.array_equal(one[name].down, other[name].down)
    assert np.abs(one[name].down).max() <= 64**-0.5
    assert not one[name].up.any()


def test_dropout_is_for_training_alone() -> None:
    decoder = learned(make(), LoraSettings(rank=4, dropout=0.5))
    assert torch.equal(logits(decoder), logits(decoder))
    decoder.train()
    assert not torch.equal(logits(decoder), logits(decoder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": True}, "rank is True"),
        ({"rank": 4097}, "rank is 4097, allowed a whole number from 1 to 4096"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"targets": ("q", "query")}, "targets names query. Choose among q, k"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraSettings(**changes)  # type: ignore[arg-type]


def test_what_a_model_has_not() -> None:
    plain = ModelConfig.uniform(
        vocab_size=64, d_model=32, n_layers=1, n_heads=2, d_ff=64, max_positions=16,
        mlp=Mlp.PLAIN, activation=Activation.GELU,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="targets names gate, this model has down, k, o"):
        add_lora(make(plain), LoraSettings(targets=("q", "gate")), 0)
    with pytest.raises(ConfigError, match=r"rank is 33, layers.0.attn.q.weight is 32 x 32"):
        add_lora(make(), LoraSettings(rank=33), 0)
    with pytest.raises(ConfigError, match="has a side path already"):
        add_lora(add_lora(make(), LoraSettings(), 0), LoraSettings(), 0)
    down, up = np.ones((2, 32), np.float32), np.ones((48, 2), np.float32)
    wrong = Adapter({"layers.0.attn.q.weight": LowRank(down, up, 1.0)})
    with pytest.raises(ModelFileError, match=r"corrects \[48, 32\]"):
        apply_adapter(make(), wrong)
