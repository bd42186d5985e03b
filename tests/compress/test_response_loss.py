"""The distillation loss against an independent, whole-tensor implementation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from miudo.compress.distill.response import ResponseLoss, ResponseSettings, chunk_gradient
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
    loss = ResponseLoss(
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


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_gradient_of_the_logits_is_the_closed_form(alpha: float) -> None:
    """d(T^2 KL)/dz = T (softmax(z/T) - teacher's): the T^2, and no mean hidden in the chunk."""
    temperature = 3.0
    generator = torch.Generator().manual_seed(1)
    z, t = (4.0 * torch.randn(5, VOCAB, generator=generator) for _ in range(2))
    targets = torch.tensor([0, 3, VOCAB - 1, 7, 3])
    _, slope = chunk_gradient(z, t, targets, temperature, alpha)
    kl = temperature * ((z / temperature).softmax(-1) - (t / temperature).softmax(-1))
    cross_entropy = z.softmax(-1) - F.one_hot(targets, VOCAB)
    torch.testing.assert_close(
        slope, alpha * kl + (1 - alpha) * cross_entropy, rtol=1e-5, atol=1e-7
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inside torch.compile
def test_compiled_is_the_same(ids: Tensor) -> None:
    teacher, student = decoder(32, 1), decoder(16, 2)
    loss = ResponseLoss(teacher, ResponseSettings(), chunk_logits=7 * VOCAB)
    plain, parts = loss(student, ids)
    fast, fast_parts = loss.compiled()(student, ids)
    assert fast.item() == pytest.approx(plain.item(), rel=SUM_ORDER)
    assert fast_parts == pytest.approx(parts, rel=SUM_ORDER)


def test_a_student_equal_to_its_teacher_has_no_kl(ids: Tensor) -> None:
    teacher, student = decoder(32, 1), decoder(32, 1)
    _, parts = ResponseLoss(teacher, ResponseSettings())(student, ids)
    assert parts["kl"] == pytest.approx(0.0, abs=SUM_ORDER)


def test_no_gradient_reaches_the_teacher_and_it_is_untouched(ids: Tensor) -> None:
    teacher, student = decoder(32, 1), decoder(16, 2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    total, _ = ResponseLoss(teacher, ResponseSettings())(student, ids)
    total.backward()
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_teacher_may_be_bfloat16(ids: Tensor) -> None:
    student = decoder(16, 2)
    exact, _ = ResponseLoss(decoder(32, 1), ResponseSettings())(student, ids)
    rounded, _ = ResponseLoss(decoder(32, 1).bfloat16(), ResponseSettings())(student, ids)
    assert rounded.dtype is torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05)  # 8 bits of mantissa
    assert rounded.item() != exact.item()


def test_different_vocabularies_are_refused_by_name(ids: Tensor) -> None:
    loss = ResponseLoss(decoder(32, 1, vocab=64), ResponseSettings())
    with pytest.raises(ConfigError, match=r"64 tokens.*37"):
        loss(decoder(16, 2), ids)


def test_teacher_with_nan_is_refused_by_tensor() -> None:
    teacher = decoder(32, 1)
    with torch.no_grad():
        teacher.layers[1].mlp.up.weight[0, 0] = math.nan
    with pytest.raises(CheckFailedError, match=r"layers\.1\.mlp\.up\.weight.*1 of"):
        ResponseLoss(teacher, ResponseSettings())


@pytest.mark.parametrize("values", [{"temperature": 0.0}, {"alpha": 1.5}, {"alpha": math.nan}])
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        ResponseSettings(**values)


def test_whole_logits_never_live(ids: Tensor) -> None:
    """Nothing of size tokens x vocabulary is computed, let alone saved for later."""
    heights: list[int] = []
    saved: list[int] = []

    def chunk(*given: Tensor | float) -> tuple[Tensor, Tensor]:
        heights.append(len(given[0]))
        return chunk_gradient(*given)

    loss = ResponseLoss(decoder(32, 1), ResponseSettings(), chunk_logits=4 * VOCAB, chunk=chunk)

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss(decoder(16, 2), ids)
    assert heights == [4, 4, 4, 4, 4, 1]
    assert BATCH * LENGTH * VOCAB not in saved
