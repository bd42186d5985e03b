"""The response part of the loss against an independent, whole-tensor implementation."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from miudo.compress.distill.divergence import Divergence
from miudo.compress.distill.loss import DistillLoss
from miudo.compress.distill.response import Comparison, _compiled_chunk, chunk_gradient
from miudo.compress.distill.terms import DistillSettings, ResponseTerm, Schedule, TextTerm
from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, ConfigError, DataError
from miudo.train.loss import Marks

# Same sums in another order, float32, over some hundred terms of size one.
SUM_ORDER = 2e-6
BATCH, LENGTH, VOCAB = 3, 7, 37


def decoder(d_model: int, seed: int, vocab: int = VOCAB, **rest: object) -> Decoder:
    made = Decoder(
        ModelConfig.uniform(
            n_layers=2, d_model=d_model, n_heads=2, d_ff=32, vocab_size=vocab, max_positions=16,
            **rest,
        )
    )  # fmt: skip
    made.initialise(seed)
    with torch.no_grad():  # sharper than a fresh model, so that KL and temperature matter
        made.embed.weight.mul_(30.0)
    return made


def loss_of(
    teachers: list[Decoder], student: Decoder, settings: DistillSettings, chunk_tokens: int = 1000
) -> DistillLoss:
    size = chunk_tokens * student.config.vocab_size
    return DistillLoss(teachers, student.config, settings, chunk_logits=size)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCAB, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(5))


def reference(
    teacher: Decoder, student: Decoder, ids: Tensor, temperature: float, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in whole [B, T, V] tensors, from PyTorch's own losses."""
    inputs, targets = ids[:, :-1], ids[:, 1:]
    wanted = teacher.logits(teacher(inputs)).detach() / temperature
    logits = student.logits(student(inputs))
    per_token = F.kl_div(
        F.log_softmax(logits / temperature, -1),
        F.log_softmax(wanted, -1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    kl = temperature**2 * per_token.mean()
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return alpha * kl + (1 - alpha) * cross_entropy, kl, cross_entropy


def check_gradients(found: Decoder, wanted: Decoder) -> None:
    for (name, got), want in zip(found.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 1000])
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (2.0, 0.5), (0.5, 0.9), (4.0, 0.0)])
def test_value_parts_and_gradient(
    ids: Tensor, chunk_tokens: int, temperature: float, alpha: float
) -> None:
    teacher, student, twin = decoder(32, 1), decoder(16, 2), decoder(16, 2)
    settings = DistillSettings.of(temperature=temperature, alpha=alpha)
    total, parts = loss_of([teacher], student, settings, chunk_tokens)(student, ids)
    expected, kl, cross_entropy = reference(teacher, twin, ids, temperature, alpha)
    assert total.item() == pytest.approx(expected.item(), rel=SUM_ORDER)
    assert parts["forward_kl"] == pytest.approx(kl.item(), rel=SUM_ORDER)
    assert parts["cross_entropy"] == pytest.approx(cross_entropy.item(), rel=SUM_ORDER)
    total.backward()
    expected.backward()
    check_gradients(student, twin)


@pytest.mark.parametrize(
    "rest",
    [{"logit_scale": 0.3}, {"logit_softcap": 4.0}, {"logit_scale": 2.0, "logit_softcap": 5.0}],
)
def test_scaled_and_capped_logits_are_those_that_are_compared(
    ids: Tensor, rest: dict[str, float]
) -> None:
    teacher, student, twin = decoder(32, 1, **rest), decoder(16, 2, **rest), decoder(16, 2, **rest)
    flat = DistillSettings.of(temperature=2.0, alpha=0.5)
    total, _ = loss_of([teacher], student, flat, 4)(student, ids)
    expected, _, _ = reference(teacher, twin, ids, 2.0, 0.5)
    assert total.item() == pytest.approx(expected.item(), rel=SUM_ORDER)
    total.backward()
    expected.backward()
    check_gradients(student, twin)


def test_many_terms_are_the_sum_of_each_alone(ids: Tensor) -> None:
    terms = (
        ResponseTerm(Divergence.FORWARD_KL, 2.0, weight=0.3),
        ResponseTerm(Divergence.SKEW_REVERSE_KL, 1.5, weight=0.7),
        ResponseTerm(Divergence.JENSEN_SHANNON, 2.0, 0.2, weight=1.1),
        ResponseTerm(Divergence.FORWARD_KL, 1.0, weight=0.2),
        TextTerm(weight=0.4),
    )
    teacher, student, twin = decoder(32, 1), decoder(16, 2), decoder(16, 2)
    total, parts = loss_of([teacher], student, DistillSettings(terms), 4)(student, ids)
    total.backward()
    assert list(parts) == [
        "forward_kl", "skew_reverse_kl", "jensen_shannon", "forward_kl_2", "cross_entropy",
    ]  # fmt: skip
    expected = 0.0
    for term, part in zip(terms, parts.values(), strict=True):
        alone = dataclasses.replace(term, weight=1.0)
        value, _ = loss_of([teacher], twin, DistillSettings((alone,)), 4)(twin, ids)
        assert part == pytest.approx(value.item(), rel=SUM_ORDER)
        (term.weight * value).backward()
        expected += term.weight * value.item()
    assert total.item() == pytest.approx(expected, rel=SUM_ORDER)
    check_gradients(student, twin)


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_gradient_of_the_logits_is_the_closed_form(alpha: float) -> None:
    """d(T^2 KL)/dz = T (softmax(z/T) - teacher's): the T^2, and no mean hidden in the chunk."""
    temperature = 3.0
    generator = torch.Generator().manual_seed(1)
    z, t = (4.0 * torch.randn(5, VOCAB, generator=generator) for _ in range(2))
    targets = torch.tensor([0, 3, VOCAB - 1, 7, 3])
    settings = DistillSettings.of(temperature=temperature, alpha=alpha)
    comparison = Comparison(settings.terms, (1.0,), VOCAB)  # type: ignore[arg-type]
    _, slope = chunk_gradient(comparison, z, [t], targets, torch.tensor([alpha, 1 - alpha]))
    kl = temperature * ((z / temperature).softmax(-1) - (t / temperature).softmax(-1))
    cross_entropy = z.softmax(-1) - F.one_hot(targets, VOCAB)
    torch.testing.assert_close(
        slope, alpha * kl + (1 - alpha) * cross_entropy, rtol=1e-5, atol=1e-7
    )


def test_several_teachers_are_the_mean_of_their_probabilities(ids: Tensor) -> None:
    teachers, student, twin = [decoder(32, 1), decoder(16, 8)], decoder(16, 2), decoder(16, 2)
    terms = (ResponseTerm(Divergence.FORWARD_KL, 2.0),)
    settings = DistillSettings(terms, teacher_weights=(3.0, 1.0))
    total, _ = loss_of(teachers, student, settings, 4)(student, ids)
    inputs = ids[:, :-1]
    with torch.no_grad():
        first, second = (t.logits(t(inputs)).div(2.0).softmax(-1) for t in teachers)
    wanted = 0.75 * first + 0.25 * second
    given = (twin.logits(twin(inputs)) / 2.0).log_softmax(-1)
    expected = 4.0 * (wanted * (wanted.log() - given)).sum(-1).mean()
    assert total.item() == pytest.approx(expected.item(), rel=SUM_ORDER)
    total.backward()
    expected.backward()
    check_gradients(student, twin)


def test_padded_vocabularies_are_cut_to_the_shared_one(ids: Tensor) -> None:
    """Rows of padding, whatever they hold, neither count nor learn."""
    teacher, student, twin = decoder(32, 1, vocab=64), decoder(16, 2, vocab=48), decoder(16, 2)
    with torch.no_grad():
        twin.load_state_dict({**student.state_dict(), "embed.weight": student.embed.weight[:VOCAB]})
    small = decoder(32, 1)
    small.load_state_dict({**teacher.state_dict(), "embed.weight": teacher.embed.weight[:VOCAB]})
    flat = DistillSettings.of(temperature=2.0, alpha=0.5)
    settings = dataclasses.replace(flat, shared_vocab=VOCAB)
    total, _ = loss_of([teacher], student, settings, 4)(student, ids)
    expected, _, _ = reference(small, twin, ids, 2.0, 0.5)
    assert total.item() == pytest.approx(expected.item(), rel=SUM_ORDER)
    total.backward()
    expected.backward()
    slope = student.embed.weight.grad
    assert slope is not None
    assert bool((slope[VOCAB:] == 0).all())
    torch.testing.assert_close(slope[:VOCAB], twin.embed.weight.grad, rtol=1e-4, atol=2e-6)
    ids[0, -1] = VOCAB
    with pytest.raises(DataError, match=f"id {VOCAB}.*shared vocabulary is of {VOCAB}"):
        loss_of([teacher], student, settings, 4)(student, ids)


def test_more_shared_ids_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"40 ids.*37"):
        loss_of([decoder(32, 1)], decoder(16, 2), DistillSettings(shared_vocab=40))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inside torch.compile
def test_compiled_is_the_same(ids: Tensor) -> None:
    teacher, student = decoder(32, 1), decoder(16, 2)
    terms = (
        *DistillSettings.of().terms,
        ResponseTerm(Divergence.JENSEN_SHANNON, 2.0, schedule=Schedule.FALL),
    )
    loss = loss_of([teacher], student, DistillSettings(terms), 7)
    for step in (0, 1):
        plain, parts = loss.at(step, 4, 0)(student, ids)
        fast, fast_parts = loss.compiled().at(step, 4, 0)(student, ids)
        assert fast.item() == pytest.approx(plain.item(), rel=SUM_ORDER)
        assert fast_parts == pytest.approx(parts, rel=SUM_ORDER)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inside torch.compile
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_compiled_gradient_is_the_same(temperature: float) -> None:
    """Values may be right and the gradient wrong: a compiler once left out the text's part."""
    draw = torch.Generator().manual_seed(3)
    logits, taught = torch.randn(2, 64, 96, generator=draw)
    targets = torch.randint(0, 96, (64,), generator=draw)
    comparison = Comparison(DistillSettings.of(temperature=temperature).terms, (1.0,), 96, None)
    given = logits, [taught], targets, torch.tensor([0.5, 0.5])
    wanted = chunk_gradient(comparison, *given)
    found = _compiled_chunk(comparison, dynamic=False)(*given)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_student_equal_to_its_teacher_has_no_kl(ids: Tensor) -> None:
    teacher, student = decoder(32, 1), decoder(32, 1)
    _, parts = loss_of([teacher], student, DistillSettings.of())(student, ids)
    assert parts["forward_kl"] == pytest.approx(0.0, abs=SUM_ORDER)


def test_a_teacher_that_is_the_student_is_refused(ids: Tensor) -> None:
    student, twin = decoder(32, 1), decoder(32, 1)
    twin.load_state_dict(student.state_dict(), assign=True)
    for teacher in (student, twin):
        with pytest.raises(CheckFailedError, match="its own logits"):
            loss_of([teacher], student, DistillSettings.of())(student, ids)


def test_no_gradient_reaches_the_teacher_and_it_is_untouched(ids: Tensor) -> None:
    teacher, student = decoder(32, 1), decoder(16, 2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    total, _ = loss_of([teacher], student, DistillSettings.of())(student, ids)
    total.backward()
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_teacher_may_be_bfloat16(ids: Tensor) -> None:
    student = decoder(16, 2)
    exact, _ = loss_of([decoder(32, 1)], student, DistillSettings.of())(student, ids)
    rounded, _ = loss_of([decoder(32, 1).bfloat16()], student, DistillSettings.of())(student, ids)
    assert rounded.dtype is torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05)  # 8 bits of mantissa
    assert rounded.item() != exact.item()


def test_different_vocabularies_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"64 tokens.*37.*--shared-vocab"):
        loss_of([decoder(32, 1, vocab=64)], decoder(16, 2), DistillSettings.of())


def test_teacher_with_nan_is_refused_by_tensor() -> None:
    teacher = decoder(32, 1)
    with torch.no_grad():
        teacher.layers[1].mlp.up.weight[0, 0] = math.nan
    with pytest.raises(CheckFailedError, match=r"layers\.1\.mlp\.up\.weight.*1 of"):
        loss_of([teacher], decoder(16, 2), DistillSettings.of())


def test_marks_leave_the_tokens_that_do_not_count_out(ids: Tensor) -> None:
    teacher, student = decoder(32, 1), decoder(16, 2)
    counted = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    counted[1, 2], counted[2, 5] = True, True
    marks = Marks(counted, torch.zeros(BATCH, LENGTH, dtype=torch.int32))
    settings = DistillSettings((ResponseTerm(Divergence.REVERSE_KL),))
    total, _ = loss_of([teacher], student, settings, 4)(student, ids, marks)
    with torch.no_grad():
        p, q = (m.logits(m(ids[:, :-1])).softmax(-1)[counted] for m in (teacher, student))
        expected = (q * (q / p).log()).sum(-1).mean()
    assert total.item() == pytest.approx(expected.item(), rel=SUM_ORDER)


def test_accumulation_over_parts_is_the_mean_over_the_whole(ids: Tensor) -> None:
    """Means over tokens, so that equal parts may be averaged; never over rows or vocabulary."""
    teacher, student = decoder(32, 1), decoder(16, 2)
    loss = loss_of([teacher], student, DistillSettings.of(Divergence.JENSEN_SHANNON), 4)
    whole, _ = loss(student, ids)
    parts = [loss(student, row[None])[0].item() for row in ids]
    assert whole.item() == pytest.approx(sum(parts) / len(parts), rel=SUM_ORDER)


def test_normalising_divides_by_the_first_value_and_keeps_it(ids: Tensor) -> None:
    teacher, student = decoder(32, 1), decoder(16, 2)
    terms = (ResponseTerm(normalise=True, weight=0.7), TextTerm(weight=0.3, normalise=True))
    loss = loss_of([teacher], student, DistillSettings(terms), 4)
    first, parts = loss(student, ids)
    assert first.item() == pytest.approx(1.0, rel=SUM_ORDER)
    with torch.no_grad():
        student.embed.weight.mul_(0.5)
    second, later = loss(student, ids)
    expected = sum(t.weight * later[n] / parts[n] for t, n in zip(terms, parts, strict=True))
    assert second.item() == pytest.approx(expected, rel=SUM_ORDER)
    assert second.item() != pytest.approx(1.0, rel=1e-3)


def test_whole_logits_never_live(ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of size tokens x vocabulary is computed, let alone saved for later."""
    heights: list[int] = []
    saved: list[int] = []

    def chunk(comparison: Comparison, logits: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        heights.append(len(logits))
        return chunk_gradient(comparison, logits, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("miudo.compress.distill.response.chunk_gradient", chunk)
    student = decoder(16, 2)
    loss = loss_of([decoder(32, 1)], student, DistillSettings.of(), 4)

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss(student, ids)
    assert heights == [4, 4, 4, 4, 4, 1]
    assert BATCH * LENGTH * VOCAB not in saved
