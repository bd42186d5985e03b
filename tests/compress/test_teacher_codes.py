"""What is kept of a teacher's distribution, against whole distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from miudo.compress.distill.cached_loss import coarse_gradient, drawn_gradient, filled_gradient
from miudo.compress.distill.codes import Coarse, DrawCodes, TopCodes, coarse_kl
from miudo.errors import ConfigError

VOCAB, K = 211, 16


def logits(seed: int, n: int = 40, vocab: int = VOCAB, sharp: float = 3.0) -> Tensor:
    return sharp * torch.randn(n, vocab, generator=torch.Generator().manual_seed(seed))


def exact(z: Tensor, temperature: float, k: int = K) -> Coarse:
    """The buckets in float64, summed id by id: nothing coded, nothing shared with the code."""
    p = (z.double() / temperature).exp()
    p = p / p.sum(-1, keepdim=True)
    ids = z.argsort(dim=-1, descending=True)[:, :k]
    top = torch.stack([p[i, ids[i]] for i in range(len(z))])
    rest = torch.stack([p[i].sum() - top[i].sum() for i in range(len(z))])
    return Coarse(ids, top.log().float(), rest.log().float())


def bucketed(z: Tensor, coarse: Coarse, temperature: float) -> Tensor:
    """KL of two distributions of k + 1 outcomes, by PyTorch's own function; z may have a graph."""
    p = (z.double() / temperature).softmax(-1)
    top = torch.stack([p[i, coarse.ids[i]] for i in range(len(z))])
    mine = torch.cat((top, (1.0 - top.sum(-1, keepdim=True))), 1)
    asked = torch.cat((coarse.logprobs, coarse.rest[:, None]), 1).double().exp()
    return F.kl_div(mine.log(), asked, reduction="none").sum(-1)


def test_sizes_are_as_stated() -> None:
    assert TopCodes().dtype(65_536).itemsize == 50
    assert TopCodes().dtype(65_537).itemsize == 82
    assert DrawCodes().dtype(65_536).itemsize == 50
    assert TopCodes(k=8, draws=12).dtype(65_536).itemsize == 50
    assert TopCodes(k=5).dtype(100).itemsize == 3 * 5 + 2


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("sharp", [0.3, 3.0, 12.0])
def test_what_is_read_is_what_was_said(temperature: float, sharp: float) -> None:
    codes = TopCodes(K, temperature=2.0)
    z = logits(1, sharp=sharp)
    read = codes.decode(codes.encode(z, 0), VOCAB, temperature)
    wanted = exact(z, temperature)
    assert torch.equal(read.ids, wanted.ids)
    whole = torch.cat((read.logprobs, read.rest[:, None]), 1).exp().sum(-1)
    torch.testing.assert_close(whole, torch.ones(len(z)), rtol=0, atol=1e-5)
    # Half a step of each code: 1/510 of a span of some ten nats, 1/64 of the rest's odds.
    likely = wanted.logprobs > -12.0
    assert (read.logprobs - wanted.logprobs)[likely].abs().max() < 0.06
    assert (read.rest.exp() - wanted.rest.exp()).abs().max() < 0.02
    assert float(coarse_kl(z, read, temperature).mean()) < 1e-3


def test_another_temperature_cannot_be_formed() -> None:
    with pytest.raises(ConfigError, match=r"3\.0, the cache holds 1\.0 and 2\.0"):
        TopCodes(temperature=2.0).check(3.0)
    with pytest.raises(ConfigError, match=r"1\.0, the cache holds 2\.0"):
        TopCodes(temperature=2.0, draws=3).check(1.0)
    with pytest.raises(ConfigError, match="drawn at"):
        DrawCodes(temperature=1.0).check(2.0)
    with pytest.raises(ConfigError, match="k is 40"):
        TopCodes(k=40).dtype(40)


def test_ids_that_cannot_be_are_no_trouble() -> None:
    z = logits(2)
    z[:, K + 3 :] = -math.inf
    codes = TopCodes(K, temperature=2.0)
    read = codes.decode(codes.encode(z, 0), VOCAB, 2.0)
    assert torch.isfinite(read.logprobs).all()
    assert float(coarse_kl(z, read, 2.0).mean()) < 2e-3


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_the_rest_bucket_is_the_coarse_kl_and_its_gradient(temperature: float) -> None:
    coarse, z = exact(logits(3), temperature), logits(4).requires_grad_()
    value, slope = coarse_gradient(z.detach(), coarse, temperature)
    expected = temperature**2 * bucketed(z, coarse, temperature).sum()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    (wanted,) = torch.autograd.grad(expected, z)
    torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-6)


def test_the_coarse_kl_is_below_the_whole_one() -> None:
    teacher, z = logits(3), logits(4)
    whole = F.kl_div(z.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="sum")
    value, _ = coarse_gradient(z, exact(teacher, 1.0), 1.0)
    assert 0.0 < value.item() < whole.item()


def test_the_best_student_keeps_the_teachers_tail() -> None:
    """Not renormalised to the top ids: what a student learns outside them is what there is."""
    teacher = logits(5, n=4, sharp=1.0)
    coarse = exact(teacher, 1.0)
    z = torch.zeros(4, VOCAB)
    for _ in range(3000):
        z -= coarse_gradient(z, coarse, 1.0)[1]
    p = z.softmax(-1)
    tail = 1.0 - p.gather(1, coarse.ids).sum(-1)
    assert coarse.rest.exp().min() > 0.3  # there is a tail to lose
    torch.testing.assert_close(tail, coarse.rest.exp(), rtol=0, atol=1e-3)
    torch.testing.assert_close(p.gather(1, coarse.ids), coarse.logprobs.exp(), rtol=0, atol=1e-3)


def test_a_student_without_any_tail_has_finite_loss_and_gradient() -> None:
    z = logits(4)
    coarse = exact(logits(3), 1.0)
    z.scatter_(1, coarse.ids, 500.0)
    value, slope = coarse_gradient(z, coarse, 1.0)
    assert torch.isfinite(value)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_mean_gradient_of_draws_is_the_whole_one(temperature: float) -> None:
    """Exactly: the expectation over one draw is a sum over the vocabulary; N draws are a mean."""
    teacher, z = logits(6, n=1, vocab=23), logits(7, n=1, vocab=23).requires_grad_()
    p = (teacher / temperature).softmax(-1)[0]
    mean = torch.zeros(1, 23)
    for v in range(23):
        mean += p[v] * drawn_gradient(z.detach(), torch.tensor([[v]]), temperature)[1]
    whole = temperature**2 * F.kl_div((z / temperature).log_softmax(-1), p[None], reduction="sum")
    (wanted,) = torch.autograd.grad(whole, z)
    torch.testing.assert_close(mean, wanted, rtol=1e-4, atol=1e-6)
    # Several draws, some equal: the mean of theirs.
    one, two = (drawn_gradient(z.detach(), torch.tensor([[v]]), temperature) for v in (3, 5))
    both = drawn_gradient(z.detach(), torch.tensor([[3, 3, 5, 5]]), temperature)
    torch.testing.assert_close(both[1], (one[1] + two[1]) / 2)
    assert both[0].item() == pytest.approx((one[0] + two[0]).item() / 2)


def test_ids_are_drawn_as_often_as_they_are_probable() -> None:
    codes = DrawCodes(draws=200, temperature=2.0)
    z = logits(8, n=1, vocab=12).expand(500, -1)
    drawn = codes.encode(z, 0)["ids"].reshape(-1)
    found = np.bincount(drawn, minlength=12) / drawn.size
    wanted = (z[0].double() / 2.0).softmax(-1).numpy()
    # Five deviations of a share of 100,000 draws.
    assert np.all(np.abs(found - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / drawn.size))


def test_draws_are_keyed_by_seed_and_block() -> None:
    z = logits(9)
    first = DrawCodes().encode(z, 3)
    assert np.array_equal(first, DrawCodes().encode(z, 3))
    assert not np.array_equal(first, DrawCodes().encode(z, 4))
    assert not np.array_equal(first, DrawCodes(seed=1).encode(z, 3))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_mean_gradient_of_a_filled_bucket_is_the_whole_one(temperature: float) -> None:
    """Exactly, as above: the expectation over one id drawn from what is in the bucket."""
    teacher, z = logits(6, n=1, vocab=23), logits(7, n=1, vocab=23).requires_grad_()
    p = (teacher / temperature).softmax(-1)[0]
    coarse = exact(teacher, temperature, k=5)
    inside = [v for v in range(23) if v not in coarse.ids[0].tolist()]
    mean, value = torch.zeros(1, 23), 0.0
    for v in inside:
        filled = Coarse(coarse.ids, coarse.logprobs, coarse.rest, torch.tensor([[v, v]]))
        far, slope = filled_gradient(z.detach(), filled, temperature)
        share = p[v] / coarse.rest.exp()
        mean += share * slope
        value += float(share * far)
    whole = temperature**2 * F.kl_div((z / temperature).log_softmax(-1), p[None], reduction="sum")
    (wanted,) = torch.autograd.grad(whole, z)
    torch.testing.assert_close(mean, wanted, rtol=1e-4, atol=1e-6)
    within = p[inside] / p[inside].sum()
    entropy = -(within * within.log()).sum() * p[inside].sum()
    assert value == pytest.approx(float(whole.detach() + temperature**2 * entropy), rel=1e-4)


def test_the_bucket_is_filled_from_what_is_in_it() -> None:
    codes = TopCodes(k=4, temperature=2.0, draws=200)
    z = logits(8, n=1, vocab=12).expand(500, -1)
    read = codes.decode(codes.encode(z, 0), 12, 2.0)
    assert read.drawn is not None
    found = np.bincount(read.drawn.reshape(-1).numpy(), minlength=12) / read.drawn.numel()
    wanted = (z[0].double() / 2.0).softmax(-1)
    wanted[read.ids[0]] = 0.0
    shares = (wanted / wanted.sum()).numpy()
    assert np.all(np.abs(found - shares) <= 5 * np.sqrt(shares * (1 - shares) / 100_000))
    coarse = TopCodes(k=4, temperature=2.0)
    plain = coarse.decode(coarse.encode(z, 0), 12, 2.0)
    assert torch.equal(read.logprobs, plain.logprobs)
    nothing = torch.full((1, 12), -math.inf)
    nothing[0, :4] = 1.0
    empty = codes.decode(codes.encode(nothing, 0), 12, 2.0)
    assert torch.isfinite(filled_gradient(z[:1], empty, 2.0)[1]).all()
