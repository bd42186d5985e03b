"""Divergences and their written-out gradients against autograd and closed forms, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from miudo.compress.distill.divergence import (
    Divergence,
    divergence,
    forward_kl,
    from_logits,
    jensen_shannon,
    log_probs,
    skew_kl,
    skew_reverse_kl,
)

ROWS, VOCAB = 6, 23
# Two ways to the same float64 sums of some tens of terms.
SAME = 1e-11
ONES = [
    (Divergence.FORWARD_KL, 0.0),
    (Divergence.REVERSE_KL, 0.0),
    *((Divergence.JENSEN_SHANNON, beta) for beta in (0.0, 0.1, 0.5, 0.9, 1.0)),
    *((kind, a) for kind in (Divergence.SKEW_KL, Divergence.SKEW_REVERSE_KL) for a in (0.0, 0.1)),
    (Divergence.TOTAL_VARIATION, 0.0),
]


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        3.0 * torch.randn(ROWS, VOCAB, generator=generator, dtype=torch.float64),
        3.0 * torch.randn(ROWS, VOCAB, generator=generator, dtype=torch.float64),
    )


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def plainly(kind: Divergence, p: Tensor, q: Tensor, mix: float) -> Tensor:
    """From its definition in probabilities: p the teacher's, q the student's."""
    written: dict[Divergence, Callable[[], Tensor]] = {
        Divergence.FORWARD_KL: lambda: kl(p, q),
        Divergence.REVERSE_KL: lambda: kl(q, p),
        Divergence.SKEW_KL: lambda: kl(p, mix * p + (1 - mix) * q),
        Divergence.SKEW_REVERSE_KL: lambda: kl(q, (1 - mix) * p + mix * q),
        Divergence.TOTAL_VARIATION: lambda: 0.5 * (p - q).abs().sum(-1),
    }
    if kind is Divergence.JENSEN_SHANNON:
        if mix in (0.0, 1.0):
            return kl(p, q) if mix == 0.0 else kl(q, p)
        m = mix * p + (1 - mix) * q
        return mix * kl(p, m) + (1 - mix) * kl(q, m)
    return written[kind]()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("kind", "mix"), ONES)
def test_value_and_gradient_are_autograds(kind: Divergence, mix: float, temperature: float) -> None:
    logits, taught = pair()
    leaf = logits.clone().requires_grad_()
    p, q = (taught / temperature).softmax(-1), (leaf / temperature).softmax(-1)
    expected = temperature**2 * plainly(kind, p, q, mix)
    expected.sum().backward()
    wanted = log_probs(taught, temperature)
    values, slope = from_logits(kind, logits, wanted, temperature=temperature, mix=mix)
    torch.testing.assert_close(values, expected.detach(), rtol=SAME, atol=SAME)
    torch.testing.assert_close(slope, leaf.grad, rtol=SAME, atol=SAME)
    # Only differences of logits count: a gradient that moves them all alike would be wrong.
    torch.testing.assert_close(
        slope.sum(-1), torch.zeros(ROWS, dtype=torch.float64), atol=SAME, rtol=0
    )


@pytest.mark.parametrize(("kind", "mix"), ONES)
def test_equal_distributions_are_no_distance_apart(kind: Divergence, mix: float) -> None:
    s = log_probs(pair()[0])
    values, slope = divergence(kind, s, s.clone(), mix)
    assert values.abs().max() < SAME
    assert slope.abs().max() < SAME


@pytest.mark.parametrize(("kind", "mix"), ONES)
def test_no_value_is_negative_and_a_step_down_the_gradient_lowers_it(
    kind: Divergence, mix: float
) -> None:
    logits, taught = pair(4)
    wanted = log_probs(taught)
    values, slope = from_logits(kind, logits, wanted, mix=mix)
    assert values.min() >= 0
    after, _ = from_logits(kind, logits - 1e-3 * slope, wanted, mix=mix)
    assert bool((after < values).all())


@pytest.mark.parametrize(("kind", "mix"), ONES)
def test_impossible_tokens_of_both_are_as_if_cut_off(kind: Divergence, mix: float) -> None:
    """-inf logits: 0 * inf must not become NaN, in value or gradient."""
    logits, taught = pair(2)
    hidden = [3, 11]
    rest = [i for i in range(VOCAB) if i not in hidden]
    logits[:, hidden], taught[:, hidden] = -math.inf, -math.inf
    values, slope = from_logits(kind, logits, log_probs(taught, 2.0), temperature=2.0, mix=mix)
    cut, cut_slope = from_logits(
        kind, logits[:, rest], log_probs(taught[:, rest], 2.0), temperature=2.0, mix=mix
    )
    torch.testing.assert_close(values, cut, rtol=SAME, atol=SAME)
    torch.testing.assert_close(slope[:, rest], cut_slope, rtol=SAME, atol=SAME)
    assert bool((slope[:, hidden] == 0).all())


@pytest.mark.parametrize(
    ("kind", "mix"), [one for one in ONES if one[0] is not Divergence.REVERSE_KL]
)
def test_tokens_that_only_the_teacher_excludes_are_finite(kind: Divergence, mix: float) -> None:
    if mix == 1.0 or (kind is Divergence.SKEW_REVERSE_KL and mix == 0.0):  # these are reverse KL
        return
    logits, taught = pair(3)
    taught[:, 5] = -math.inf
    values, slope = from_logits(kind, logits, log_probs(taught), mix=mix)
    assert bool(torch.isfinite(values).all())
    assert bool(torch.isfinite(slope).all())


def test_infinite_divergence_is_said_and_not_hidden() -> None:
    logits, taught = pair(3)
    taught[:, 5] = -math.inf
    values, _ = from_logits(Divergence.REVERSE_KL, logits, log_probs(taught))
    assert bool(torch.isposinf(values).all())


def test_a_student_of_nan_stays_nan() -> None:
    logits, taught = pair(3)
    logits[2, 4] = math.nan
    for kind, mix in ONES:
        values, slope = from_logits(kind, logits, log_probs(taught), mix=mix)
        assert bool(torch.isnan(values[2])), kind
        assert bool(torch.isnan(slope[2]).any()), kind
        assert bool(torch.isfinite(values[0])), kind


def test_jensen_shannon_is_symmetric_at_a_half_and_bounded_by_log_2() -> None:
    logits, taught = pair(7)
    s, t = log_probs(logits), log_probs(taught)
    there, back = jensen_shannon(s, t, 0.5)[0], jensen_shannon(t, s, 0.5)[0]
    torch.testing.assert_close(there, back, rtol=SAME, atol=SAME)
    apart = torch.full((1, VOCAB), -math.inf, dtype=torch.float64)
    one, other = apart.clone(), apart.clone()
    one[0, 0], other[0, 1] = 0.0, 0.0
    assert float(jensen_shannon(one, other, 0.5)[0]) == pytest.approx(math.log(2), rel=SAME)


def test_a_small_beta_shrinks_the_value_but_zero_does_not() -> None:
    """JSD(beta) goes to beta * KL: without its special case beta = 0 would teach nothing."""
    logits, taught = pair(8)
    s, t = log_probs(logits / 4), log_probs(taught / 4)  # no ratio near 1 / beta
    whole = forward_kl(s, t)[0]
    torch.testing.assert_close(jensen_shannon(s, t, 0.0)[0], whole)
    small = jensen_shannon(s, t, 1e-6)[0]
    assert bool((small < 1e-4 * whole).all())
    torch.testing.assert_close(small / 1e-6, whole, rtol=1e-3, atol=0)


@pytest.mark.parametrize("skewed", [skew_kl, skew_reverse_kl])
def test_skew_is_bounded_by_the_logarithm_of_alpha(
    skewed: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]],
) -> None:
    apart = torch.full((1, VOCAB), -math.inf, dtype=torch.float64)
    one, other = apart.clone(), apart.clone()
    one[0, 0], other[0, 1] = 0.0, 0.0
    assert float(skewed(one, other, 0.1)[0]) == pytest.approx(-math.log(0.1), rel=SAME)


@pytest.mark.parametrize(("kind", "mix"), ONES)
def test_t_squared_keeps_the_gradients_size(kind: Divergence, mix: float) -> None:
    """At a high temperature all but total variation become squares of differences of logits.

    Their gradient by the logits then no longer depends on T; without T^2 it would fall as 1/T^2.
    """
    if kind is Divergence.TOTAL_VARIATION:
        return
    logits, taught = pair(9)
    norms = [
        float(from_logits(kind, logits, log_probs(taught, t), temperature=t, mix=mix)[1].norm())
        for t in (100.0, 200.0)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


def test_half_precision_logits_are_widened_first() -> None:
    logits, taught = pair(5)
    rounded = logits.bfloat16()
    values, slope = from_logits(Divergence.FORWARD_KL, rounded, log_probs(taught.float()))
    exact, _ = from_logits(Divergence.FORWARD_KL, rounded.double(), log_probs(taught))
    assert values.dtype is slope.dtype is torch.float32
    torch.testing.assert_close(values.double(), exact, rtol=1e-5, atol=1e-6)
