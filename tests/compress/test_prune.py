"""Pruning: hand-made models where the right answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from miudo.compress.prune.depth import DepthPruning, DepthScore, without_layers
from miudo.compress.prune.width import WidthPruning, WidthScore
from miudo.config import Activation, Mlp, ModelConfig, Norm
from miudo.decoder.decoder import Block, Decoder
from miudo.errors import CheckFailedError, ConfigError, DataError
from miudo.tensors import parameter_count

# A removed neuron that gave exactly zero leaves the same sums in another order.
SAME = 1e-6


def made(*, d_ff: int = 96, n_layers: int = 4, seed: int = 1, **rest: object) -> Decoder:
    decoder = Decoder(
        ModelConfig.uniform(
            n_layers=n_layers,
            d_model=32,
            n_heads=2,
            d_ff=d_ff,
            vocab_size=50,
            max_positions=32,
            **rest,
        )
    )
    decoder.initialise(seed)
    return decoder


def block(decoder: Decoder, index: int) -> Block:
    found = decoder.layers[index]
    assert isinstance(found, Block)
    return found


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 50, (2, 12), generator=generator) for _ in range(3)]


def silence(decoder: Decoder, index: int) -> None:
    """Makes a block the identity."""
    with torch.no_grad():
        block(decoder, index).attn.o.weight.zero_()
        block(decoder, index).mlp.down.weight.zero_()


def logits(decoder: Decoder, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return decoder.logits(decoder(ids))


@pytest.mark.parametrize("score", DepthScore)
def test_a_block_that_does_nothing_goes_first(batches: list[Tensor], score: DepthScore) -> None:
    decoder = made()
    silence(decoder, 2)
    method = DepthPruning(drop=1, score=score)
    statistics = method.calibrate(decoder, batches)
    assert statistics.removal == (2,)
    assert statistics.tokens == 3 * 2 * 12
    pruned, report = method.apply(decoder, statistics)
    assert pruned.config.n_layers == 3
    assert report.parameters_after == parameter_count(pruned.config)
    torch.testing.assert_close(logits(pruned, batches[0]), logits(decoder, batches[0]))


def test_influence_is_one_minus_the_mean_cosine(batches: list[Tensor]) -> None:
    decoder = made(n_layers=2)
    statistics = DepthPruning().calibrate(decoder, batches)
    expected = []
    with torch.no_grad():
        for i in range(2):
            cosines = []
            for ids in batches:
                x = decoder.embed(ids).double()
                # The stream around block i, run as models of i and of i + 1 blocks.
                streams = []
                for n in (i, i + 1):
                    kept = without_layers(decoder, range(n, 2)) if n else None
                    streams.append(x if kept is None else _stream(kept, ids))
                a, b = streams
                cosines.append((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)))
            expected.append(1.0 - float(torch.cat([c.flatten() for c in cosines]).mean()))
    assert statistics.scores == pytest.approx(expected, abs=1e-6)


def _stream(decoder: Decoder, ids: Tensor) -> Tensor:
    """The residual stream before the final norm."""
    seen: list[Tensor] = []
    handle = decoder.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    decoder(ids)
    handle.remove()
    return seen[0].double()


def test_loss_score_is_the_loss_without_the_block(batches: list[Tensor]) -> None:
    decoder = made(n_layers=3)
    statistics = DepthPruning(score=DepthScore.LOSS).calibrate(decoder, batches)
    for i, score in enumerate(statistics.scores):
        pruned = without_layers(decoder, [i])
        whole = [logits(pruned, ids[:, :-1]).flatten(0, 1) for ids in batches]
        targets = [ids[:, 1:].flatten() for ids in batches]
        expected = torch.nn.functional.cross_entropy(torch.cat(whole), torch.cat(targets))
        assert score == pytest.approx(expected.item(), rel=1e-6)


def test_depth_order_and_names_of_what_stays(batches: list[Tensor]) -> None:
    decoder = made()
    pruned = without_layers(decoder, [0, 2])
    for new, old in enumerate((1, 3)):
        kept = dict(block(pruned, new).named_parameters())
        for name, value in block(decoder, old).named_parameters():
            assert torch.equal(kept[name], value)
    _, report = DepthPruning(drop=1).apply(decoder, DepthPruning().calibrate(decoder, batches))
    gone = report.changes[0].name.split(".")[1]
    assert {c.name.split(".")[1] for c in report.changes} == {gone}
    assert all(c.shape_after is None for c in report.changes)


@pytest.mark.parametrize("drop", [4, 9])
def test_dropping_every_block_is_refused(batches: list[Tensor], drop: int) -> None:
    with pytest.raises(ConfigError, match=rf"drop is {drop}.*4 blocks.*at most 3"):
        DepthPruning(drop=drop).calibrate(made(), batches)


@pytest.mark.parametrize("score", WidthScore)
@pytest.mark.parametrize("plain", [False, True])
def test_neurons_that_never_fire_go_first(
    batches: list[Tensor], score: WidthScore, plain: bool
) -> None:
    kind: dict[str, object] = (
        {"mlp": Mlp.PLAIN, "activation": Activation.GELU_TANH, "norm": Norm.LAYER}
        | {"norm_bias": True, "mlp_bias": True, "qkv_bias": True, "o_bias": True}
        if plain
        else {}
    )
    decoder = made(**kind)
    dead = torch.randperm(96, generator=torch.Generator().manual_seed(7))[:32]
    with torch.no_grad():
        for i in range(4):
            mlp = block(decoder, i).mlp
            mlp.up.weight[dead] = 0.0  # its activation is then exactly zero
            mlp.down.weight[:, dead] = 100.0  # large columns must not save it
            if mlp.up.bias is not None:
                mlp.up.bias.normal_(generator=torch.Generator().manual_seed(i))
                mlp.up.bias[dead] = 0.0
                mlp.down.bias.fill_(0.25)
    method = WidthPruning(keep=2 / 3, score=score)
    pruned, report = method.apply(decoder, method.calibrate(decoder, batches))
    assert [layer.d_ff for layer in pruned.config.layers] == [64] * 4
    assert block(pruned, 0).mlp.down.weight.shape == (32, 64)
    torch.testing.assert_close(
        logits(pruned, batches[0]), logits(decoder, batches[0]), rtol=SAME, atol=SAME
    )
    assert report.parameters_before - report.parameters_after == sum(
        value.numel() for value in decoder.parameters()
    ) - sum(value.numel() for value in pruned.parameters())


def test_energy_is_minitrons(batches: list[Tensor]) -> None:
    decoder = made(n_layers=1)
    energy = WidthPruning().calibrate(decoder, batches).energy[0]
    inner = []
    mlp = block(decoder, 0).mlp
    with torch.no_grad():
        for ids in batches:
            seen: list[Tensor] = []
            handle = mlp.register_forward_pre_hook(lambda _, given, s=seen: s.append(given[0]))
            decoder(ids)
            handle.remove()
            assert mlp.gate is not None
            inner.append(torch.nn.functional.silu(mlp.gate(seen[0])) * mlp.up(seen[0]))
    means = torch.cat(inner).abs().double().mean(dim=1)  # sequences, neurons
    np.testing.assert_allclose(energy, means.square().sum(0).numpy(), rtol=1e-6)


def test_output_score_weighs_by_the_column_of_down(batches: list[Tensor]) -> None:
    decoder = made(n_layers=1)
    with torch.no_grad():
        block(decoder, 0).mlp.down.weight[:, :32] = 0.0  # they fire, and nobody listens
    method = WidthPruning(keep=2 / 3, score=WidthScore.OUTPUT)
    pruned, _ = method.apply(decoder, method.calibrate(decoder, batches))
    assert torch.equal(block(pruned, 0).mlp.down.weight, block(decoder, 0).mlp.down.weight[:, 32:])


def test_widths_a_layer(batches: list[Tensor]) -> None:
    decoder = made(n_layers=2)
    method = WidthPruning(widths=(32, 96))
    pruned, report = method.apply(decoder, method.calibrate(decoder, batches))
    assert [layer.d_ff for layer in pruned.config.layers] == [32, 96]
    assert {c.name.split(".")[1] for c in report.changes} == {"0"}


@pytest.mark.parametrize(
    ("d_ff", "keep", "expected"), [(96, 0.5, 64), (96, 1.0, 96), (96, 0.01, 32), (20, 0.5, 20)]
)
def test_width_is_a_multiple_where_it_can_be(d_ff: int, keep: float, expected: int) -> None:
    # 48 lies halfway between 32 and 64: Python rounds half to even, so two multiples.
    assert WidthPruning(keep=keep).resolve(made(d_ff=d_ff)) == (expected,) * 4


def test_uniform_width_where_layers_differed() -> None:
    decoder = made()
    layers = tuple(
        dataclasses.replace(layer, d_ff=d_ff)
        for layer, d_ff in zip(decoder.config.layers, (64, 96, 128, 128), strict=True)
    )
    uneven = Decoder(dataclasses.replace(decoder.config, layers=layers))
    assert WidthPruning(keep=0.5).resolve(uneven) == (32,) * 4


@pytest.mark.parametrize("widths", [(32,), (32, 32, 32, 128)])
def test_widths_that_cannot_be_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="widths"):
        WidthPruning(widths=widths).resolve(made())


def test_a_layer_that_calibration_never_reached_is_named(batches: list[Tensor]) -> None:
    decoder = made()
    with torch.no_grad():
        block(decoder, 1).mlp.up.weight.zero_()
    with pytest.raises(CheckFailedError, match=r"layers\.1\.mlp\.down.*energy of 0\.0"):
        WidthPruning().calibrate(decoder, batches)


def test_hooks_are_gone_even_after_an_error(batches: list[Tensor]) -> None:
    decoder = made()
    with pytest.raises(IndexError):
        WidthPruning().calibrate(decoder, [batches[0], torch.tensor([[999]])])
    assert not any(block(decoder, i).mlp.down._forward_pre_hooks for i in range(4))


@pytest.mark.parametrize("kind", [DepthPruning, WidthPruning])
def test_apply_without_calibration_is_refused(
    kind: type[DepthPruning] | type[WidthPruning],
) -> None:
    with pytest.raises(DataError, match="calibrat"):
        kind().apply(made())
