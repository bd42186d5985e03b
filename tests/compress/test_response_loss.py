"""The distillation loss against an independent, whole-tensor implementation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from miudo.compress.distill.response import ResponseSettings, response_loss
from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, ConfigError

# Same sums in another order, float32, over some hundred terms of size one.
SUM_ORDER = 2e-6
BATCH, LENGTH, VOCAB = 3, 7, 37


def decoder(d_model: int, seed: int, vocab: int = VOCAB) -> Decoder:
    made = Decoder(
        ModelConfig.uniform(
            n_layers=2, d_model=d_model, n_heads=2, d_ff=32, vocab_size=vocab, max_positions=16
        )
    )
    made.initialise(seed)
    with torch.no_grad():  # sharper than a fresh model, so that KL and temperature matter
        made.embed.weight.mul_(30.0)
    return made


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


@pytest.mark.parametrize("chunk_tokens", [1, 4, 1000])
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (2.0, 0.5), (0.5, 0.9), (4.0, 0.0)])
def test_value_parts_and_gradient(
    ids: Tensor, chunk_tokens: int, temperature: float, alpha: float
) -> None:
    teacher, student, twin = decoder(32, 1), decoder(16, 2), decoder(16, 2)
    loss = response_loss(
        teacher, ResponseSettings(temperature, alpha), chunk_logits=chunk_tokens * VOCAB
    )
    total, parts = loss(student, ids)
    expected, kl, cross_entropy = reference(teacher, twin, ids, temperature, alpha)
    assert total.item() == pytest.approx(expected.item(), rel=SUM_ORDER)
    assert parts["kl"] == pytest.approx(kl.item(), rel=SUM_ORDER)
    assert parts["cross_entropy"] == pytest.approx(cross_entropy.item(), rel=SUM_ORDER)
    total.backward()
    expected.backward()
    for (name, got), want in zip(student.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_gradient_of_the_logits_is_the_closed_form(ids: Tensor) -> None:
    """d(T^2 KL)/dz = T (softmax(z/T) - teacher's) / tokens: the T^2 and the token mean."""
    temperature = 3.0
    teacher, student = decoder(32, 1), decoder(16, 2)
    seen: list[Tensor] = []
    inner = student.logits

    def kept(hidden: Tensor) -> Tensor:
        out = inner(hidden)
        out.retain_grad()
        seen.append(out)
        return out

    student.logits = kept  # type: ignore[method-assign]
    total, _ = response_loss(teacher, ResponseSettings(temperature, 1.0))(student, ids)
    total.backward()
    inputs = ids[:, :-1]
    wanted = (teacher.logits(teacher(inputs)) / temperature).softmax(-1).flatten(0, 1)
    given = (inner(student(inputs)) / temperature).softmax(-1).flatten(0, 1)
    expected = temperature * (given - wanted) / (BATCH * LENGTH)
    # The forward pass's logits and those recomputed for the backward pass: the latter count.
    gradient = next(z.grad for z in seen if z.grad is not None)
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-4, atol=1e-7)


def test_a_student_equal_to_its_teacher_has_no_kl(ids: Tensor) -> None:
    teacher, student = decoder(32, 1), decoder(32, 1)
    _, parts = response_loss(teacher, ResponseSettings())(student, ids)
    assert parts["kl"] == pytest.approx(0.0, abs=SUM_ORDER)


def test_no_gradient_reaches_the_teacher_and_it_is_untouched(ids: Tensor) -> None:
    teacher, student = decoder(32, 1), decoder(16, 2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    total, _ = response_loss(teacher, ResponseSettings())(student, ids)
    total.backward()
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_teacher_may_be_bfloat16(ids: Tensor) -> None:
    student = decoder(16, 2)
    exact, _ = response_loss(decoder(32, 1), ResponseSettings())(student, ids)
    rounded, _ = response_loss(decoder(32, 1).bfloat16(), ResponseSettings())(student, ids)
    assert rounded.dtype is torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05)  # 8 bits of mantissa
    assert rounded.item() != exact.item()


def test_different_vocabularies_are_refused_by_name(ids: Tensor) -> None:
    loss = response_loss(decoder(32, 1, vocab=64), ResponseSettings())
    with pytest.raises(ConfigError, match=r"64 tokens.*37"):
        loss(decoder(16, 2), ids)


def test_teacher_with_nan_is_refused_by_tensor() -> None:
    teacher = decoder(32, 1)
    with torch.no_grad():
        teacher.layers[1].mlp.up.weight[0, 0] = math.nan
    with pytest.raises(CheckFailedError, match=r"layers\.1\.mlp\.up\.weight.*1 of"):
        response_loss(teacher, ResponseSettings())


@pytest.mark.parametrize("values", [{"temperature": 0.0}, {"alpha": 1.5}, {"alpha": math.nan}])
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        ResponseSettings(**values)


def test_less_memory_alive_than_whole_logits() -> None:
    """Saved for the backward pass: nothing of size tokens x vocabulary."""
    sizes: list[int] = []
    ids = torch.zeros(2, 9, dtype=torch.int64)
    loss = response_loss(decoder(32, 1), ResponseSettings(), chunk_logits=4 * VOCAB)
    student = decoder(16, 2)

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss(student, ids)
    assert sizes
    # Matrices of the student are saved by reference; activations of 16 tokens are not of V.
    assert 16 * VOCAB not in sizes
    assert 4 * VOCAB not in sizes
