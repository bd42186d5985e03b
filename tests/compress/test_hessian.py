"""The shared second-order arithmetic against plain inverses and least squares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from miudo.compress.hessian import compensate, invert, output_error
from miudo.errors import CheckFailedError


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(inputs: int, tokens: int = 200, seed: int = 1) -> Tensor:
    mixed = drawn(tokens, inputs, seed=seed) @ drawn(inputs, inputs, seed=seed + 1)
    return mixed.T @ mixed


def test_the_factor_is_upper_and_gives_the_inverse() -> None:
    outer = gram(12)
    found = invert(outer, damping=0.01, where="w")
    damped = outer + 0.01 * outer.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    assert torch.equal(found.factor, found.factor.triu())
    torch.testing.assert_close(found.factor.T @ found.factor, torch.linalg.inv(damped))
    assert (found.damping, found.dead, found.note) == (0.01, 0, None)


def test_columns_found_in_parts_and_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    outer, order = gram(12), torch.randperm(12, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr("miudo.compress.hessian._COLUMNS", 5)
    found = invert(outer, damping=0.01, where="w", order=order)
    damped = outer + 0.01 * outer.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    assert torch.equal(found.factor, found.factor.triu())
    wanted = torch.linalg.inv(damped)[order][:, order]
    torch.testing.assert_close(found.factor.T @ found.factor, wanted)


@pytest.mark.parametrize("block", [1, 4, 5, 128])
def test_free_columns_end_where_least_squares_has_them(block: int) -> None:
    # With the first columns set to zero and the others left as they come, what is left is the
    # best that the others can do: the (damped) regression of the output on them.
    weight, outer, gone = drawn(6, 11), gram(11), 4
    found = invert(outer, damping=0.01, where="w")
    zero = torch.zeros(6, dtype=torch.float64)
    made = compensate(
        weight, found.factor, lambda j, rest: zero if j < gone else rest[:, 0], block=block
    )
    damped = outer + 0.01 * outer.diagonal().mean() * torch.eye(11, dtype=torch.float64)
    kept = damped[gone:, gone:]
    best = weight @ damped[:, gone:] @ torch.linalg.inv(kept)
    assert bool((made[:, :gone] == 0).all())
    torch.testing.assert_close(made[:, gone:], best)


def test_output_error_is_the_squared_difference_of_outputs() -> None:
    inputs = drawn(50, 7)
    before, after = drawn(3, 7, seed=2), drawn(3, 7, seed=3)
    expected = float((inputs @ before.T - inputs @ after.T).square().sum())
    assert output_error(before, after, inputs.T @ inputs) == pytest.approx(expected)


def test_a_singular_hessian_takes_more_damping_and_says_so() -> None:
    # Not a sum of squares by a little, as rounding makes it: 0.01 of the mean is not enough.
    outer = torch.diag(torch.tensor([1.0, 1.0, -0.05], dtype=torch.float64))
    found = invert(outer, damping=0.01, where="w")
    assert found.damping == pytest.approx(0.1)
    assert found.note is not None
    assert "0.1 was taken" in found.note


def test_a_dead_input_is_alone() -> None:
    outer = gram(6)
    outer[2, :] = outer[:, 2] = 0.0
    found = invert(outer, where="w")
    assert found.dead == 1
    others = [0, 1, 3, 4, 5]
    assert bool((found.factor[2, others] == 0).all())
    assert bool((found.factor[others, 2] == 0).all())
    assert bool(torch.isfinite(found.factor).all())


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(wrong: float) -> None:
    outer = gram(4)
    outer[1, 2] = wrong
    with pytest.raises(CheckFailedError, match=r"layers\.1\.mlp\.up"):
        invert(outer, where="layers.1.mlp.up")


def test_nothing_seen_is_named() -> None:
    with pytest.raises(CheckFailedError, match="mean 0"):
        invert(torch.zeros(3, 3, dtype=torch.float64), where="w")


def test_what_no_damping_helps_is_refused() -> None:
    outer = torch.tensor([[1.0, 1e6], [1e6, 1.0]], dtype=torch.float64)
    with pytest.raises(CheckFailedError, match="no Cholesky factor"):
        invert(outer, where="w")
