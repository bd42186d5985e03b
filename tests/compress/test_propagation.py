"""A matrix makes up for its inputs' error as least squares would, and the whole model gains."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from miudo.compress.quantize.gptq import GPTQ, Outcome, Rounding
from miudo.compress.quantize.order import round_in_order
from miudo.compress.quantize.plan import Plan, rounded_decoder
from miudo.compress.quantize.propagation import corrected, moments, solver
from miudo.compress.station import Gram
from miudo.compress.walk import walk
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError
from miudo.tensors import DType, StoredTensor

Make = Callable[[str], Decoder]


def problem(inputs: int = 24) -> tuple[Tensor, Tensor, Tensor, Gram, Tensor]:
    """A weight, what it should be given, what it is given, and their moments."""
    draw = torch.Generator().manual_seed(2)
    weight = torch.randn(6, inputs, generator=draw)
    meant = torch.randn(400, inputs, generator=draw) @ torch.randn(inputs, inputs, generator=draw)
    given = 0.9 * meant + 0.5 * torch.randn(400, inputs, generator=draw)
    gram = Gram(torch.zeros(inputs, inputs, dtype=torch.float64))
    gram.add(given)
    return weight, meant, given, gram, ((meant - given).T @ given).double()


def test_the_correction_is_the_ridge_regression_of_what_is_missing() -> None:
    weight, meant, given, gram, missing = problem()
    ridge = 0.01 * float(gram.outer.diagonal().mean())
    rows = np.vstack([given.double().numpy(), np.sqrt(ridge) * np.eye(24)])
    gone = ((meant - given) @ weight.T).double().numpy()
    wanted = np.linalg.lstsq(rows, np.vstack([gone, np.zeros((24, 6))]))[0].T
    factor = solver("w", gram)
    assert factor is not None
    for strength in (0.5, 1.0):
        found = corrected(weight, factor, gram, missing, strength) - weight
        np.testing.assert_allclose(found.numpy(), strength * wanted, rtol=1e-3, atol=1e-5)


def test_inputs_without_an_error_change_nothing() -> None:
    weight, _, _, gram, _ = problem()
    none = torch.zeros_like(gram.outer)
    factor = solver("w", gram)
    assert factor is not None
    torch.testing.assert_close(corrected(weight, factor, gram, none, 1.0), weight)


def test_too_few_tokens_say_nothing() -> None:
    _, _, _, gram, _ = problem()
    gram.tokens = 47
    assert solver("w", gram) is None
    gram.tokens = 48
    assert solver("w", gram) is not None


@pytest.mark.parametrize("sparsity", [0.02, 0.5, 0.9])
def test_zeros_stay_and_no_row_is_worse_for_it(sparsity: float) -> None:
    weight, meant, given, gram, missing = problem()
    draw = torch.Generator().manual_seed(4)
    weight[torch.rand(weight.shape, generator=draw) < sparsity] = 0
    factor = solver("w", gram)
    assert factor is not None
    made = corrected(weight, factor, gram, missing, 0.5)
    assert ((made == 0) == (weight == 0)).all()
    aim = meant @ weight.T
    errors = [(aim - given @ w.T).double().square().sum(0) for w in (weight, made)]
    assert (errors[1] <= errors[0]).all()
    assert errors[1].sum() < 0.95 * errors[0].sum()


def test_rows_done_in_parts_are_those_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _, _, gram, missing = problem()
    factor = solver("w", gram)
    assert factor is not None
    whole = corrected(weight, factor, gram, missing, 0.5)
    monkeypatch.setattr("miudo.compress.quantize.propagation._ROWS", 4)
    torch.testing.assert_close(corrected(weight, factor, gram, missing, 0.5), whole)


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
            gram, missing = moments(stop, aim, "layers.1.mlp.down.weight")
            torch.testing.assert_close(gram.outer, z.T @ z, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(missing, (x - z).T @ z, rtol=1e-4, atol=1e-4)
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


def test_what_stays_a_float_stays_as_it_is(tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny("llama-untied")
    stored, _ = GPTQ(tables=DType.F32).store(decoder, tuple(batches * 4))
    head = decoder.to_weights()["head.weight"]
    np.testing.assert_array_equal(stored["head.weight"].data, head.data)


@pytest.mark.parametrize("propagation", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["llama-untied", "neox"])
def test_the_head_is_given_what_the_file_gives_where_attention_stays_a_float(
    kind: str, propagation: float, tiny: Make, batches: list[Tensor]
) -> None:
    decoder, seen = tiny(kind), list[Tensor]()
    types = {name: DType.BF16 if ".attn." in name else DType.Q4_0 for name, _ in decoder.tensors()}
    plain = Rounding.GPTQ.rule(Outcome())

    def rule(name: str, weight: Tensor, gram: Gram, dtype: DType) -> StoredTensor:
        if name == "head.weight":
            seen.append(gram.outer)
        return plain(name, weight, gram, dtype)

    plan, given = Plan.of(decoder, types), tuple(batches * 4)
    stored = round_in_order(decoder, given, plan, rule, propagation=propagation)
    assert stored["layers.1.attn.q.weight"].dtype is DType.BF16
    made = rounded_decoder(decoder, stored)
    with torch.no_grad():
        rows = torch.cat([made(ids).flatten(0, 1) for ids in given]).double()
    torch.testing.assert_close(seen[0], rows.T @ rows, rtol=1e-5, atol=1e-4)


def test_the_models_parameters_are_not_written(tiny: Make, batches: list[Tensor]) -> None:
    decoder = tiny("llama-untied")
    before = {name: p._version for name, p in decoder.named_parameters()}
    GPTQ().store(decoder, tuple(batches))
    assert {name: p._version for name, p in decoder.named_parameters()} == before


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), True])
def test_a_strength_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="propagation is"):
        GPTQ(propagation=value)
