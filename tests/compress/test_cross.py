"""Learning across tokenizers, against whole tensors and PyTorch's own gradients."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from miudo.compress.distill.cross import CrossLoss, CrossMode, CrossSettings, cross_divergence
from miudo.compress.distill.spans import Aligner
from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, ConfigError
from miudo.text.tokenizer import TextTokenizer, train_bpe

TEXT = "o gato dorme na casa azul. a casa do gato é pequena, e o cão não dorme: canção, coração. "
SMALL = train_bpe([TEXT + "zunido " * 9], vocab_size=275)
LARGE = train_bpe(
    [TEXT * 3, "the cat sleeps in the house"], vocab_size=330, special=("</s>", "<x>")
)
ENDS = (SMALL.special_ids["<|end|>"], LARGE.special_ids["</s>"])
LENGTH = 24


def decoder(tokenizer: TextTokenizer, seed: int, positions: int = 64) -> Decoder:
    config = ModelConfig.uniform(
        n_layers=2, d_model=32, n_heads=2, d_ff=32, vocab_size=tokenizer.padded_size(64),
        max_positions=positions,
    )  # fmt: skip
    made = Decoder(config)
    made.initialise(seed)
    with torch.no_grad():
        made.embed.weight.mul_(30.0)
    return made


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def ids() -> Tensor:
    end = SMALL.special_ids["<|end|>"]
    row = [*SMALL.encode(TEXT), end, *SMALL.encode("coração azul, gato pequeno")]
    rows = [row[at : at + LENGTH + 1] for at in (0, 9, len(row) - LENGTH - 1)]
    return torch.tensor(rows)


def gradients(total: Tensor, student: Decoder) -> list[Tensor]:
    return list(torch.autograd.grad(total, list(student.parameters())))


def test_one_tokenizer_is_the_plain_case() -> None:
    """All places are compared, all tokens shared, nothing sorted, no spans: KL and text."""
    words = SMALL.encode(TEXT)
    ids = torch.tensor([words[: LENGTH + 1], [0, *words[:LENGTH]]])
    teacher, student = decoder(SMALL, 1), decoder(SMALL, 2)
    settings = CrossSettings(temperature=2.0, alpha=0.7)
    total, parts = CrossLoss(teacher, Aligner(SMALL, SMALL), settings)(student, ids)
    wanted = teacher.logits(teacher(ids[:, :-1])).detach().flatten(0, 1)
    z = student.logits(student(ids[:, :-1])).flatten(0, 1)
    known = SMALL.vocab_size  # the table has rows more: one bucket, which both see
    assert z.shape[1] > known

    def bucketed(x: Tensor) -> Tensor:
        every = (x / 2.0).log_softmax(-1)
        return torch.cat((every[:, :known], every[:, known:].logsumexp(-1, keepdim=True)), 1)

    kl = 4.0 * F.kl_div(bucketed(z), bucketed(wanted), log_target=True, reduction="batchmean")
    plain = F.cross_entropy(z, ids[:, 1:].flatten())
    assert parts["compared"] == 1.0
    assert parts["spans"] == 0.0
    assert parts["shared"] == pytest.approx(kl.item(), rel=1e-5)
    assert parts["cross_entropy"] == pytest.approx(plain.item(), rel=1e-5)
    padding = [(x / 2.0).softmax(-1)[:, known:].sort(-1).values for x in (z, wanted)]
    ordered = (padding[0] - padding[1]).abs().sum(-1).mean()
    expected = 0.7 * (kl + 1.5 * ordered) + 0.3 * plain
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    for got, want in zip(gradients(total, student), gradients(expected, student), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def reference(
    teacher: Decoder, student: Decoder, ids: Tensor, settings: CrossSettings
) -> tuple[Tensor, dict[str, float]]:
    """The whole loss place by place and span by span, by loops, with PyTorch's gradients."""
    pairs = Aligner(SMALL, LARGE, ENDS).shared.tolist()
    t = settings.temperature
    kls, sorts, spans = [], [], []
    for row in ids.tolist():
        found = Aligner(SMALL, LARGE, ENDS).rows(np.array([row], dtype=np.int32))[0]
        theirs = torch.tensor([found.teacher_ids])
        z = student.logits(student(torch.tensor([row])))[0].double()
        w = teacher.logits(teacher(theirs))[0].double().detach()
        places = [(i, j) for i, j in found.places.tolist() if i >= 1]
        for i, j in places:
            if i > LENGTH:
                continue
            p, q = (w[j - 1] / t).softmax(-1), (z[i - 1] / t).softmax(-1)
            kept = pairs if settings.mode is CrossMode.HYBRID else []
            mine, yours = {i for i, _ in kept}, {j for _, j in kept}
            rest_q = torch.stack([q[v] for v in range(len(q)) if v not in mine])
            rest_p = torch.stack([p[v] for v in range(len(p)) if v not in yours])
            kl = sum(p[b] * (p[b].log() - q[a].log()) for a, b in kept)
            if kept:
                kl = kl + rest_p.sum() * (rest_p.sum().log() - rest_q.sum().log())
                kls.append(t**2 * kl)
            else:
                kls.append(torch.zeros(()))
            a, b = (sorted(x, reverse=True) for x in (rest_p, rest_q))
            a += [torch.zeros(())] * (len(b) - len(a))
            b += [torch.zeros(())] * (len(a) - len(b))
            sorts.append(sum(abs(x - y) for x, y in zip(a, b, strict=True)))
        for (i, j), (k, m) in itertools.pairwise(places):
            if max(k - i, m - j) > 1:
                own = sum(z[n - 1].log_softmax(-1)[row[n]] for n in range(i, k))
                given = sum(w[n - 1].log_softmax(-1)[found.teacher_ids[n]] for n in range(j, m))
                p, q = given.exp(), own.exp()
                spans.append(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    z = student.logits(student(ids[:, :-1])).flatten(0, 1)
    plain = F.cross_entropy(z, ids[:, 1:].flatten())
    kl, ordered, span = (torch.stack(list(x)).mean() for x in (kls, sorts, spans))
    total = settings.alpha * (kl + settings.uld * ordered + settings.span * span)
    parts = {"shared": kl.item(), "sorted": ordered.item(), "spans": span.item()}
    parts |= {"cross_entropy": plain.item(), "compared": len(kls) / (len(ids) * LENGTH)}
    return total + (1 - settings.alpha) * plain, parts


@pytest.mark.parametrize(
    "settings",
    [
        CrossSettings(),
        CrossSettings(CrossMode.ULD, temperature=1.5, alpha=0.8, uld=0.7, span=0.0),
        CrossSettings(alpha=1.0, uld=0.0, span=3.0, temperature=2.0),
    ],
)
def test_value_parts_and_gradient(ids: Tensor, settings: CrossSettings) -> None:
    teacher, student = decoder(LARGE, 1), decoder(SMALL, 2)
    if settings.span > 1.0:  # what is compared are logits as they are given
        student = Decoder(dataclasses.replace(student.config, logit_scale=9.0, logit_softcap=9.0))
        student.initialise(3)
    loss = CrossLoss(teacher, Aligner(SMALL, LARGE, ENDS), settings)
    total, parts = loss(student, ids)
    expected, wanted = reference(teacher, student, ids, settings)
    if not settings.span:
        wanted["spans"] = 0.0
    assert parts == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert total.item() == pytest.approx(expected.item(), rel=1e-4)
    for got, want in zip(gradients(total, student), gradients(expected, student), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert 0.2 < parts["compared"] < 1.0


def test_nothing_to_sort_where_one_side_shares_all() -> None:
    """A student whose tokens the teacher has all is not told to say what it cannot."""
    generator = torch.Generator().manual_seed(0)
    z, w = torch.randn(4, 5, generator=generator), torch.randn(4, 9, generator=generator)
    shared = torch.tensor([[i, 8 - i] for i in range(5)])
    kl, ordered = cross_divergence(z, w, shared, 1.0)
    p = w[:, [8, 7, 6, 5, 4]].softmax(-1)  # given that one of the five comes
    expected = (p * (p.log() - z.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(kl, expected)
    assert not ordered.any()


def test_no_gradient_reaches_the_teacher_and_it_is_untouched(ids: Tensor) -> None:
    teacher, student = decoder(LARGE, 1), decoder(SMALL, 2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    CrossLoss(teacher, Aligner(SMALL, LARGE, ENDS), CrossSettings())(student, ids)[0].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_teacher_with_fewer_positions_compares_what_it_can_read(ids: Tensor) -> None:
    student = decoder(SMALL, 2)
    aligner = Aligner(SMALL, LARGE, ENDS)
    whole = CrossLoss(decoder(LARGE, 1), aligner, CrossSettings())(student, ids)[1]
    short = CrossLoss(decoder(LARGE, 1, positions=6), aligner, CrossSettings())(student, ids)[1]
    assert 0.0 < short["compared"] < whole["compared"]
    assert math.isfinite(short["shared"])


def test_autocast_does_not_trip_over_types(ids: Tensor) -> None:
    teacher, student = decoder(LARGE, 1), decoder(SMALL, 2)
    loss = CrossLoss(teacher, Aligner(SMALL, LARGE, ENDS), CrossSettings())
    exact = loss(student, ids)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss(student, ids)[0]
    rounded.backward()
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05)


def test_text_that_is_none_fails_the_check() -> None:
    broken = next(i for i in range(SMALL.vocab_size) if SMALL.token_bytes(i) == b"\xe9")
    loss = CrossLoss(decoder(LARGE, 1), Aligner(SMALL, LARGE, ENDS), CrossSettings())
    with pytest.raises(CheckFailedError, match="no place"):
        loss(decoder(SMALL, 2), torch.full((2, LENGTH + 1), broken))


def test_a_broken_teacher_and_wrong_settings_are_refused() -> None:
    teacher = decoder(LARGE, 1)
    with torch.no_grad():
        teacher.layers[0].mlp.up.weight[0, 0] = math.nan
    with pytest.raises(CheckFailedError, match=r"layers\.0\.mlp\.up"):
        CrossLoss(teacher, Aligner(SMALL, LARGE, ENDS), CrossSettings())
    for values in ({"alpha": 1.1}, {"uld": -1.0}, {"temperature": 0.0}, {"mode": "gold"}):
        with pytest.raises(ConfigError, match=next(iter(values))):
            CrossSettings(**values)
