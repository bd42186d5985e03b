"""On-policy distillation: whose ids, how they are drawn, what is learned of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from miudo.compress.distill.loss import DistillLoss
from miudo.compress.distill.method import HeldText
from miudo.compress.distill.onpolicy import OnPolicyLoss, OnPolicySettings, rollout, row_key
from miudo.compress.distill.terms import DistillSettings, ResponseTerm
from miudo.decoder.decoder import Decoder
from miudo.decoder.torch_engine import TorchEngine
from miudo.errors import CheckFailedError, ConfigError
from miudo.protocol import SamplingSettings, SeqWork
from miudo.train.loop import fit
from miudo.train.loss import Marks, cross_entropy
from miudo.train.settings import FitSettings

VOCAB, LENGTH = 96, 20


class Watched:
    """Cross-entropy that keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[Tensor, Marks | None]] = []

    def __call__(
        self, decoder: Decoder, ids: Tensor, marks: Marks | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        self.shown.append((ids, marks))
        return cross_entropy(decoder, ids, marks)


@pytest.fixture
def student(tiny: Callable[[str], Decoder]) -> Decoder:
    made = tiny("llama")
    with torch.no_grad():
        made.embed.weight.mul_(20.0)
    return made


@pytest.fixture
def ids() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, VOCAB, (3, LENGTH + 1), generator=generator)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_ids_are_those_an_engine_samples_one_by_one(
    tiny: Callable[[str], Decoder], ids: Tensor, kind: str
) -> None:
    """Together, over a cache, and the same as the oracle of every sampler in the house."""
    student = tiny(kind)
    with torch.no_grad():
        student.embed.weight.mul_(20.0)
    settings = OnPolicySettings(temperature=0.8, seed=7)
    drawn = rollout(student, ids[:, :5], LENGTH, settings)
    assert drawn.shape == (3, LENGTH)
    engine = TorchEngine(student)
    for row, prompt in zip(drawn.tolist(), ids[:, :5], strict=True):
        sampling = SamplingSettings(temperature=0.8, seed=7, request=row_key(prompt))
        known = prompt.tolist()
        conversation, fresh = engine.open(), list(known)
        while len(known) < LENGTH:
            (out,) = engine.step([SeqWork(conversation, fresh, sampling=sampling)])
            assert out.token is not None
            fresh = [out.token]
            known.append(out.token)
        assert row == known


def test_rows_do_not_depend_on_their_company(student: Decoder, ids: Tensor) -> None:
    together = rollout(student, ids[:, :4], LENGTH, OnPolicySettings())
    for i in range(3):
        alone = rollout(student, ids[i : i + 1, :4], LENGTH, OnPolicySettings())
        assert torch.equal(alone[0], together[i])


def test_ids_that_pad_a_vocabulary_are_not_drawn(student: Decoder, ids: Tensor) -> None:
    flat = OnPolicySettings(temperature=10.0)
    prompts = ids[:, :2] % 8
    assert rollout(student, prompts, LENGTH, flat).max() >= 8
    assert rollout(student, prompts, LENGTH, flat, n_ids=8).max() < 8


def test_what_the_student_wrote_is_counted_and_the_prompt_is_not(
    student: Decoder, ids: Tensor
) -> None:
    on_samples, on_text = Watched(), Watched()
    loss = OnPolicyLoss(on_samples, on_text, OnPolicySettings(share=1.0, prompt=0.3))
    total, parts = loss(student, ids)
    ((drawn, marks),) = on_samples.shown
    assert not on_text.shown
    assert parts["sampled"] == 1.0
    kept = 6  # 0.3 of 20
    assert torch.equal(drawn[:, :kept], ids[:, :kept])
    assert not torch.equal(drawn[:, kept:], ids[:, kept:])
    assert marks is not None
    assert marks.counted.tolist() == [[False] * (kept - 1) + [True] * (LENGTH - kept + 1)] * 3
    # The mean over the drawn ids alone, computed from whole logits.
    whole = student.logits(student(drawn[:, :-1])).log_softmax(-1)
    picked = whole.gather(2, drawn[:, 1:, None])[:, kept - 1 :, 0]
    assert total.item() == pytest.approx(-picked.mean().item(), rel=1e-5)


def test_no_gradient_goes_through_the_draws(student: Decoder, ids: Tensor) -> None:
    on_samples = Watched()
    loss = OnPolicyLoss(on_samples, cross_entropy, OnPolicySettings(share=1.0))
    student.train()
    loss(student, ids)[0].backward()
    assert student.training
    got = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    student.zero_grad()
    cross_entropy(student, *on_samples.shown[0])[0].backward()
    wanted = [p.grad for p in student.parameters() if p.grad is not None]
    assert len(got) == len(list(student.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_the_share_of_batches_is_lambda(student: Decoder) -> None:
    def taken(
        decoder: Decoder, ids: Tensor, marks: Marks | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        return torch.zeros(()), {}

    loss = OnPolicyLoss(taken, taken, OnPolicySettings(share=0.3, prompt=0.95))
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randint(0, VOCAB, (1, 3), generator=generator) for _ in range(300)]
    sampled = [loss(student, ids)[1]["sampled"] for ids in batches]
    assert sampled == [loss(student, ids)[1]["sampled"] for ids in batches]
    assert 0.2 < sum(sampled) / 300 < 0.4  # nearly four deviations
    never = OnPolicyLoss(taken, taken, OnPolicySettings(share=0.0))
    assert not any(never(student, ids)[1]["sampled"] for ids in batches)


def test_a_resumed_run_draws_what_an_unbroken_one_does(
    tmp_path: Path, tiny: Callable[[str], Decoder]
) -> None:
    rows = np.random.default_rng(0).integers(0, VOCAB, (9, LENGTH + 1)).astype(np.int32)
    data = HeldText(rows)
    loss = OnPolicyLoss(cross_entropy, cross_entropy, OnPolicySettings(share=0.6))
    settings = FitSettings(steps=6, batch_size=2, length=LENGTH, save_every=3, keep=9)
    whole, again = tiny("qwen"), tiny("qwen")
    fit(whole, data, settings, tmp_path, loss=loss)
    fit(again, data, settings, tmp_path, loss=loss, resume=True, from_step=3)
    for (name, a), b in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_what_the_inner_losses_keep_is_saved_with_the_run(tiny: Callable[[str], Decoder]) -> None:
    teacher, pupil = tiny("qwen"), tiny("llama")
    terms = (ResponseTerm(normalise=True),)
    both = [DistillLoss([teacher], pupil.config, DistillSettings(terms)) for _ in range(2)]
    loss = OnPolicyLoss(both[0], both[1], OnPolicySettings())
    kept = dict(loss.learned.named_buffers())
    for name, inner in (("samples", both[0]), ("text", both[1])):
        for buffer, value in inner.learned.named_buffers():
            assert kept[f"{name}.{buffer}"] is value
    assert len(kept) == 2


def test_a_broken_student_and_wrong_settings_are_refused(student: Decoder, ids: Tensor) -> None:
    for values in ({"share": 1.5}, {"prompt": 1.0}, {"temperature": 0.0}, {"seed": -1}):
        with pytest.raises(ConfigError, match=next(iter(values))):
            OnPolicySettings(**values)
    with torch.no_grad():
        student.norm.weight.fill_(float("nan"))
    with pytest.raises(CheckFailedError, match="not finite"):
        rollout(student, ids[:, :3], LENGTH, OnPolicySettings())
