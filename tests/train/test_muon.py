"""Muon against its formulas in float64 and against PyTorch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miudo.train.muon import Muon, orthogonal

SHAPES = [(8, 8), (24, 8), (8, 24), (8, 8)]
# PyTorch iterates in bf16 (8 bits of mantissa), ours here in float32.
BF16 = 3e-2


def parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(s, generator=generator) for s in SHAPES]


def iterate(g: np.ndarray) -> np.ndarray:
    """The published iteration, one matrix at a time, in float64."""
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def test_steps_follow_the_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miudo.train.muon.native_bf16", lambda kind: False)
    ours = parameters()
    weights = [p.detach().double().numpy().copy() for p in ours]
    moments = [np.zeros(s) for s in SHAPES]
    optimizer = Muon(ours, lr=0.03, weight_decay=0.1)
    for step in range(4):
        for i, g in enumerate(gradients(step)):
            ours[i].grad = g
            g64 = g.double().numpy()
            moments[i] = 0.95 * moments[i] + 0.05 * g64
            update = iterate(0.05 * g64 + 0.95 * moments[i])
            size = 0.2 * max(SHAPES[i]) ** 0.5
            weights[i] = weights[i] * (1 - 0.03 * 0.1) - 0.03 * size * update
        optimizer.step()
    for p, w in zip(ours, weights, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, atol=1e-5)


def test_it_is_pytorchs_own_but_for_rounding() -> None:
    ours, theirs = parameters(), parameters()
    one = Muon(ours, lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for mine, its, g in zip(ours, theirs, gradients(step), strict=True):
            mine.grad, its.grad = g.clone(), g.clone()
        one.step()
        other.step()
    for mine, its in zip(ours, theirs, strict=True):
        assert (mine - its).norm() / (its - 0).norm() < BF16
        moment = one.state[mine]["momentum_buffer"]
        assert torch.equal(moment, other.state[its]["momentum_buffer"])


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    g = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(g))
    assert values.min() > 0.3  # a tiny singular value takes more than five steps
    assert values.max() < 1.3
    assert orthogonal(g).dtype == torch.float32


def test_no_gradient_moves_nothing_and_nothing_is_nothing() -> None:
    ours = parameters()
    before = [p.detach().clone() for p in ours]
    Muon(ours, lr=0.1, weight_decay=0.1).step()
    assert all(torch.equal(p, b) for p, b in zip(ours, before, strict=True))
    assert torch.equal(orthogonal(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))
