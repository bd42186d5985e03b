"""A walk sees what the decoder sees, and what was changed before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from miudo.compress.walk import walk
from miudo.decoder.attention import Capture
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, DataError
from miudo.tensors import Role, tensor_table

Make = Callable[[str], Decoder]
KINDS = ("llama", "llama-untied", "gpt2", "qwen")


@pytest.mark.parametrize("kind", KINDS)
def test_stations_are_the_decoder_s_blocks_and_matrices(
    kind: str, tiny: Make, batches: list[Tensor]
) -> None:
    decoder = tiny(kind)
    captures = [Capture() for _ in batches]
    with torch.no_grad():
        for ids, capture in zip(batches, captures, strict=True):
            decoder(ids, capture=capture)
    names = []
    for i, station in enumerate(walk(decoder, batches)):
        names += list(station.weights)
        if station.name != "head":
            for x, capture in zip(station.inputs, captures, strict=True):
                assert torch.equal(x, capture.hidden[i])
            for name, weight in station.weights.items():
                assert weight is dict(decoder.named_parameters())[name]
    matrices = [
        s.name
        for s in tensor_table(decoder.config)
        if s.role in (Role.ATTENTION, Role.MLP, Role.HEAD) and s.name.endswith("weight")
    ]
    assert sorted(names) == sorted([*matrices, *(() if decoder.head else ("embed.weight",))])


@pytest.mark.parametrize("kind", KINDS)
def test_grams_are_sums_of_the_inputs(kind: str, tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny(kind)
    seen: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(f"{name}.weight", []).append(args[0])
        )
        for name, module in decoder.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.no_grad():
        for ids in batches:
            decoder.logits(decoder(ids))
    for handle in handles:
        handle.remove()
    for station in walk(decoder, batches):
        for name, gram in station.grams().items():
            if name not in seen:
                assert name == "embed.weight"
                continue
            rows = torch.cat([x.flatten(0, -2) for x in seen[name]]).double()
            np.testing.assert_allclose(gram.outer, rows.T @ rows, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(gram.mean_square, rows.square().mean(0), rtol=1e-4)
            assert gram.tokens == len(rows)


def test_a_changed_block_changes_what_the_next_is_given(tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny("llama")
    for station in walk(decoder, batches):
        if station.name == "layers.0":
            with torch.no_grad():
                for name in ("layers.0.attn.o.weight", "layers.0.mlp.down.weight"):
                    station.weights[name].zero_()
        if station.name == "layers.1":
            for x, ids in zip(station.inputs, batches, strict=True):
                assert torch.equal(x, decoder.embed(ids))


def test_nothing_seen_is_refused(tiny: Make) -> None:
    with pytest.raises(DataError, match="no tokens"):
        next(walk(tiny("llama"), []))


def test_a_dead_matrix_is_named(tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny("llama")
    with torch.no_grad():
        decoder.layers[1].attn.v.weight.zero_()
    stations = walk(decoder, batches)
    next(stations).grams()
    with pytest.raises(CheckFailedError, match=r"layers\.1\.attn\.o\.weight"):
        next(stations).grams()


def test_a_walk_apart_leaves_the_decoder_and_goes_on_with_what_was_changed(
    tiny: Make, batches: list[Tensor]
) -> None:
    decoder, changed = tiny("llama"), tiny("llama")
    with torch.no_grad():
        changed.layers[0].mlp.down.weight.mul_(2)
    before = {name: p.detach().clone() for name, p in decoder.named_parameters()}
    wanted = walk(changed, batches)
    for station, other in zip(walk(decoder, batches, apart=True), wanted, strict=True):
        for x, y in zip(station.inputs, other.inputs, strict=True):
            torch.testing.assert_close(x, y)
        if station.name == "layers.0":
            with torch.no_grad():
                station.weights["layers.0.mlp.down.weight"].mul_(2)
    for name, parameter in decoder.named_parameters():
        assert torch.equal(parameter, before[name])


def test_what_a_matrix_is_given_is_what_its_gram_sums_up(tiny: Make, batches: list[Tensor]) -> None:
    for station in walk(tiny("llama-untied"), batches):
        for name, gram in station.grams().items():
            rows = torch.cat([station.given(name, i).flatten(0, 1) for i in range(len(batches))])
            torch.testing.assert_close(gram.outer, (rows.T @ rows).double(), rtol=1e-4, atol=1e-4)
