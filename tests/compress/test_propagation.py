"""A matrix makes up for its inputs' error as least squares would, and the whole model gains."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from miudo.compress.quantize.gptq import GPTQ
from miudo.compress.quantize.propagation import corrected, moments
from miudo.compress.walk import Gram, walk
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError

Make = Callable[[str], Decoder]


def problem(inputs: int = 24) -> tuple[Tensor, Tensor, Tensor, Gram, Tensor]:
    """A weight, what it should be given, what it is given, and their moments."""
    draw = torch.Generator().manual_seed(2)
    weight = torch.randn(6, inputs, generator=draw)
    meant = torch.randn(400, inputs, generator=draw) @ torch.randn(inputs, inputs, generator=draw)
    given = 0.9 * meant + 0.5 * torch.randn(400, inputs, generator=draw)
    gram = Gram(torch.zeros(inputs, inputs, dtype=torch.float64))
    gram.add(given)
    return weight, meant, given, gram, (meant.T @ given).double()


def test_the_correction_is_the_ridge_regression_of_what_is_missing() -> None:
    weight, meant, given, gram, cross = problem()
    ridge = 0.01 * float(gram.outer.diagonal().mean())
    rows = np.vstack([given.double().numpy(), np.sqrt(ridge) * np.eye(24)])
    missing = ((meant - given) @ weight.T).double().numpy()
    wanted = np.linalg.lstsq(rows, np.vstack([missing, np.zeros((24, 6))]))[0].T
    for strength in (0.5, 1.0):
        found = corrected("w", weight, gram, cross, strength) - weight
        np.testing.assert_allclose(found.numpy(), strength * wanted, rtol=1e-3, atol=1e-5)


def test_inputs_without_an_error_change_nothing() -> None:
    weight, _, given, gram, _ = problem()
    same = (given.T @ given).double()
    torch.testing.assert_close(corrected("w", weight, gram, same, 1.0), weight)


def test_a_pruned_matrix_keeps_its_zeros() -> None:
    weight, _, _, gram, cross = problem()
    weight[:, ::2] = 0
    assert corrected("w", weight, gram, cross, 1.0) is weight


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox", "gemma"])
def test_moments_are_those_of_what_both_models_give_a_matrix(
    kind: str, tiny: Make, batches: list[Tensor]
) -> None:
    whole, other = tiny(kind), tiny(kind)
    with torch.no_grad():
        for parameter in other.layers[0].parameters():
            parameter.mul_(1.1)

    def inputs(decoder: Decoder) -> Tensor:
        seen: list[Tensor] = []
        module = decoder.layers[1].mlp.down
        handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        for ids in batches:
            decoder(ids)
        handle.remove()
        return torch.cat([x.detach().flatten(0, -2) for x in seen]).double()

    x, z = inputs(whole), inputs(other)
    aims, stops = walk(whole, batches), walk(other, batches)
    for aim, stop in zip(aims, stops, strict=True):
        if stop.name == "layers.1":
            gram, cross = moments(stop, aim, "layers.1.mlp.down.weight")
            torch.testing.assert_close(gram.outer, z.T @ z, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(cross, x.T @ z, rtol=1e-4, atol=1e-4)
            assert (x - z).norm() > 0.01 * x.norm()
            return
    pytest.fail("the walk has no layer 1")


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gpt2", "neox"])
def test_a_model_rounded_so_is_nearer_on_text_that_no_matrix_saw(kind: str, tiny: Make) -> None:
    decoder, draw = tiny(kind), torch.Generator().manual_seed(5)
    calibration = [torch.randint(0, 96, (16, 32), generator=draw) for _ in range(16)]
    unseen = torch.randint(0, 96, (64, 32), generator=draw)

    def error(propagation: float) -> float:
        made, _ = GPTQ(propagation=propagation).apply(decoder, tuple(calibration))
        with torch.no_grad():
            return float((made(unseen) - decoder(unseen)).square().mean())

    assert error(0.5) < error(0.0)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), True])
def test_a_strength_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="propagation is"):
        GPTQ(propagation=value)
