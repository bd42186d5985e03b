"""Chunked cross-entropy equals the plain one, value and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.train.loss import compiled, cross_entropy, mean_loss

# Sums of 40 float32 terms in another order; values are near 1.
TOLERANCE = 2e-6


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.t(), targets)


@pytest.mark.parametrize("chunk_logits", [1, 37 * 3, 37 * 7, 1 << 20])
def test_chunks_give_the_plain_loss_and_gradients(chunk_logits: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(40, 12, requires_grad=True)
    weight = torch.randn(37, 12, requires_grad=True)
    targets = torch.randint(0, 37, (40,))
    expected = plain(hidden, weight, targets)
    wanted = torch.autograd.grad(expected * 3.0, (hidden, weight))
    found = mean_loss(hidden, weight, targets, chunk_logits=chunk_logits)
    given = torch.autograd.grad(found * 3.0, (hidden, weight))
    assert torch.allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
    for a, b in zip(given, wanted, strict=True):
        assert torch.allclose(a, b, atol=TOLERANCE, rtol=TOLERANCE)


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(1)
    hidden = torch.randn(5, 4, requires_grad=True)
    weight = torch.randn(6, 4)
    targets = torch.tensor([0, 5, 2, 2, 1])
    (gradient,) = torch.autograd.grad(mean_loss(hidden, weight, targets), hidden)
    step = 1e-2  # float32: smaller steps drown in rounding
    with torch.no_grad():
        for i, j in ((0, 0), (2, 3), (4, 1)):
            moved = hidden.detach().clone()
            moved[i, j] += step
            up = mean_loss(moved, weight, targets)
            moved[i, j] -= 2 * step
            down = mean_loss(moved, weight, targets)
            assert float(gradient[i, j]) == pytest.approx(float(up - down) / (2 * step), abs=2e-4)


def test_large_logits_stay_finite() -> None:
    hidden = torch.full((3, 2), 200.0, requires_grad=True)
    weight = torch.tensor([[100.0, 100.0], [-100.0, -100.0]])
    loss = mean_loss(hidden, weight, torch.tensor([0, 1, 0]))
    loss.backward()
    assert torch.isfinite(loss)
    assert float(loss.detach()) == pytest.approx(80_000.0 / 3, rel=1e-6)
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize(
    ("tied", "rest"),
    [
        (True, {}),
        (False, {}),
        (True, {"logit_scale": 0.25}),
        (False, {"logit_softcap": 0.05}),
        (True, {"logit_scale": 3.0, "logit_softcap": 0.2}),
    ],
)
def test_the_decoders_loss_is_that_of_its_logits(tied: bool, rest: dict[str, Any]) -> None:
    config = ModelConfig.uniform(
        vocab_size=64,
        d_model=32,
        n_layers=1,
        n_heads=2,
        d_ff=32,
        max_positions=16,
        tie_embeddings=tied,
        **rest,
    )
    decoder = Decoder(config)
    decoder.initialise(0)
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    logits = decoder.logits(decoder(ids[:, :-1]))
    expected = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].reshape(-1))
    loss, parts = cross_entropy(decoder, ids)
    assert parts == {}
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=TOLERANCE)
    wanted = torch.autograd.grad(expected, list(decoder.parameters()))
    for found, want in zip(
        torch.autograd.grad(loss, list(decoder.parameters())), wanted, strict=True
    ):
        assert torch.allclose(found, want, atol=TOLERANCE)


def test_half_precision_products_keep_a_float32_loss() -> None:
    torch.manual_seed(2)
    hidden, weight = torch.randn(16, 32, requires_grad=True), torch.randn(50, 32)
    targets = torch.randint(0, 50, (16,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = mean_loss(hidden, weight, targets)
    assert loss.dtype is torch.float32
    # bf16 has 8 bits: logits of size 6 are off by at most 2^-6 or so each, averaged over 16.
    assert float(loss.detach()) == pytest.approx(
        float(plain(hidden, weight, targets).detach()), abs=0.05
    )


# PyTorch's own compiler imports what PyTorch deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_loss_of_someone_elses_is_not_compiled() -> None:
    def other(decoder: Decoder, ids: Tensor) -> tuple[Tensor, dict[str, float]]:
        return torch.zeros(()), {}

    assert compiled(other) is other
    assert compiled(cross_entropy) is not cross_entropy
