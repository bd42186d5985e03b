"""Relation terms against small NumPy implementations with plain loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from miudo.compress.distill.loss import DistillLoss
from miudo.compress.distill.relation import (
    angles,
    centred_alignment,
    distances,
    relation_value,
    similarities,
)
from miudo.compress.distill.terms import DistillSettings, Points, Relation, RelationTerm
from miudo.compress.distill.views import look
from miudo.config import ModelConfig
from miudo.decoder.attention import Capture
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError
from miudo.philox import permutation
from miudo.train.loss import Marks

Array = npt.NDArray[np.float64]
Compare = Callable[[Tensor, Tensor], Tensor]
CLOSE = 2e-5
N, OWN, OTHER = 9, 5, 12
BATCH, LENGTH, VOCAB = 3, 7, 37
POINTS: list[Compare] = [distances, angles, similarities, centred_alignment]


def points(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(N, OWN, generator=generator, dtype=torch.float64),
        torch.randn(N, OTHER, generator=generator, dtype=torch.float64),
    )


def smooth_l1(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def numpy_distances(a: Array, b: Array) -> float:
    pairs = list(itertools.permutations(range(N), 2))

    def relative(x: Array) -> list[float]:
        far = [float(np.linalg.norm(x[i] - x[j])) for i, j in pairs]
        return [f / (sum(far) / len(far)) for f in far]

    each = [smooth_l1(s - t) for s, t in zip(relative(a), relative(b), strict=True)]
    return sum(each) / len(each)


def numpy_angles(a: Array, b: Array) -> float:
    def cosine(x: Array, i: int, j: int, k: int) -> float:
        e, f = x[i] - x[j], x[k] - x[j]
        return float(e @ f / np.linalg.norm(e) / np.linalg.norm(f))

    triples = list(itertools.permutations(range(N), 3))
    return sum(smooth_l1(cosine(a, *t) - cosine(b, *t)) for t in triples) / len(triples)


def numpy_similarities(a: Array, b: Array) -> float:
    rows = []
    for x in (a, b):
        gram = x @ x.T
        rows.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
    return float(np.linalg.norm(rows[0] - rows[1]) ** 2 / N**2)


def numpy_alignment(a: Array, b: Array) -> float:
    """The unbiased estimator as a U-statistic: a mean over four different points."""

    def hsic(k: Array, m: Array) -> float:
        total, count = 0.0, 0
        for i, j, q, r in itertools.permutations(range(N), 4):
            total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
            count += 1
        return total / count

    k, m = a @ a.T, b @ b.T
    return 1 - hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize(
    ("compare", "plain"),
    [
        (distances, numpy_distances),
        (angles, numpy_angles),
        (similarities, numpy_similarities),
        (centred_alignment, numpy_alignment),
    ],
)
def test_values_are_the_definitions(
    compare: Compare, plain: Callable[[Array, Array], float]
) -> None:
    a, b = points()
    assert float(compare(a, b)) == pytest.approx(plain(a.numpy(), b.numpy()), rel=1e-9)
    narrow = compare(a.float(), b.float())
    assert narrow.dtype is torch.float32
    assert float(narrow) == pytest.approx(plain(a.numpy(), b.numpy()), rel=1e-4)


@pytest.mark.parametrize("compare", POINTS)
def test_gradients_agree_with_finite_differences(compare: Compare) -> None:
    a, b = points(1)
    leaf = a.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: compare(x, b), (leaf,), atol=1e-6)


@pytest.mark.parametrize("compare", POINTS)
def test_turned_and_scaled_points_are_the_same(compare: Compare) -> None:
    """The relations do not hang on axes or on size; two of them not on the origin either."""
    a, _ = points(2)
    turn, _ = torch.linalg.qr(points(3)[1][:OWN, :OWN])
    moved = 3.0 * a @ turn
    if compare is not similarities:
        moved = moved + 5.0
    assert abs(float(compare(moved, a))) < 1e-9


@pytest.mark.parametrize("compare", POINTS)
def test_points_that_lie_together_have_finite_gradients(compare: Compare) -> None:
    """The root of a zero distance has an infinite slope, and inf * 0 is NaN."""
    _, b = points(4)
    for a in (torch.zeros(N, OWN), points(4)[0].float()):
        a[1] = a[0]
        leaf = a.requires_grad_()
        value = compare(leaf, b.float())
        value.backward()
        assert bool(torch.isfinite(value))
        assert leaf.grad is not None
        assert bool(torch.isfinite(leaf.grad).all())


def test_plain_alignment_of_noise_is_near_1_and_the_debiased_one_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 256, generator=generator) for _ in range(2))

    def plain(x: Tensor, y: Tensor) -> float:
        x, y = x - x.mean(0), y - y.mean(0)
        both = float((x.t() @ x).norm() * (y.t() @ y).norm())
        return float((x.t() @ y).norm()) ** 2 / both

    assert plain(a, b) > 0.9
    assert abs(1.0 - float(centred_alignment(a, b))) < 0.2


def test_distances_far_from_the_origin_keep_their_digits() -> None:
    a, b = points(6)
    expected = float(distances(a, b))
    assert float(distances(a.float() + 300.0, b.float())) == pytest.approx(expected, rel=1e-3)


# In models.


def decoder(
    d_model: int, seed: int, *, n_layers: int = 2, n_heads: int = 4, kv: int = 2
) -> Decoder:
    made = Decoder(
        ModelConfig.uniform(
            n_layers=n_layers, d_model=d_model, n_heads=n_heads, n_kv_heads=kv, d_ff=32,
            vocab_size=VOCAB, max_positions=16,
        )
    )  # fmt: skip
    made.initialise(seed)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.endswith((".q.weight", ".k.weight", ".v.weight")):
                value.mul_(4.0)
    return made


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCAB, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(5))


def streams(decoder: Decoder, ids: Tensor) -> list[Tensor]:
    capture = Capture()
    with torch.no_grad():
        decoder(ids[:, :-1], capture=capture)
    return capture.hidden


def run(
    term: RelationTerm, student: Decoder, teacher: Decoder, ids: Tensor, marks: Marks | None = None
) -> float:
    loss = DistillLoss([teacher], student.config, DistillSettings((term,)))
    value, _ = loss(student, ids, marks)
    value.backward()
    return value.item()


@pytest.mark.parametrize("counts", [False, True])
def test_points_are_the_same_places_of_both_across_examples(counts: bool, ids: Tensor) -> None:
    student, teacher = decoder(16, 2), decoder(32, 1, n_layers=4)
    term = RelationTerm(Relation.DISTANCE, student_layer=0, teacher_layer=-2, points=6)
    counted = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    if counts:
        counted[1, :5], counted[2] = False, False
    marks = Marks(counted, torch.zeros(BATCH, LENGTH, dtype=torch.int32)) if counts else None
    found = run(term, student, teacher, ids, marks)
    own, other = streams(student, ids)[1][counted], streams(teacher, ids)[3][counted]
    chosen = torch.from_numpy(permutation(0, 0, len(own))[:6])
    assert found == pytest.approx(float(distances(own[chosen], other[chosen])), rel=CLOSE)


def test_means_of_rows_may_be_the_points() -> None:
    ids = torch.randint(0, VOCAB, (6, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    student, teacher = decoder(16, 2), decoder(32, 1)
    term = RelationTerm(Relation.GRAM, of=Points.ROWS)
    own, other = streams(student, ids)[2], streams(teacher, ids)[2]
    expected = float(similarities(own.mean(1), other.mean(1)))
    assert run(term, student, teacher, ids) == pytest.approx(expected, rel=CLOSE)
    counted = torch.ones(6, LENGTH, dtype=torch.bool)
    counted[0, 2:], counted[5] = False, False
    marks = Marks(counted, torch.zeros(6, LENGTH, dtype=torch.int32))
    pooled = [
        torch.stack([r[c].mean(0) for r, c in zip(h[:5], counted, strict=False)])
        for h in (own, other)
    ]
    found = run(term, student, teacher, ids, marks)
    assert found == pytest.approx(float(similarities(*pooled)), rel=CLOSE)


def test_other_batches_have_other_points_and_the_same_batch_the_same(ids: Tensor) -> None:
    student, teacher = decoder(16, 2), decoder(32, 1)
    settings = DistillSettings((RelationTerm(Relation.DISTANCE, points=5),))
    loss = DistillLoss([teacher], student.config, settings, seed=4)
    values = [loss.at(0, 10, batch)(student, ids)[0].item() for batch in (0, 1, 0)]
    assert values[0] == values[2] != values[1]


def test_too_few_points_teach_nothing(ids: Tensor) -> None:
    student, teacher = decoder(16, 2), decoder(32, 1)
    counted = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    counted[0, :3] = True
    marks = Marks(counted, torch.zeros(BATCH, LENGTH, dtype=torch.int32))
    assert run(RelationTerm(Relation.CKA), student, teacher, ids, marks) == 0.0


def relations(model: Decoder, layer: int, ids: Tensor, heads: int, end: int) -> list[Array]:
    """Rows [B, heads, T, T] of q, k and v before rotation, in NumPy from the weights."""
    block, stream = model.layers[layer], streams(model, ids)[layer].double().numpy()
    gain = block.attn_norm.weight.detach().double().numpy()
    h = stream / np.sqrt((stream**2).mean(-1, keepdims=True) + model.config.norm_eps) * gain
    rows = []
    for name in "qkv":
        x = h @ getattr(block.attn, name).weight.detach().double().numpy().T
        x = x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)[:, :, :end]
        scores = x @ x.transpose(0, 1, 3, 2) / math.sqrt(x.shape[-1])
        scores = np.where(np.tril(np.ones((end, end))), scores, -np.inf)
        e = np.exp(scores - scores.max(-1, keepdims=True))
        rows.append(e / e.sum(-1, keepdims=True))
    return rows


def kl_of_rows(p: Array, q: Array) -> Array:
    out = np.zeros(p.shape[:3])
    for i in range(p.shape[2]):
        a, b = p[:, :, i, : i + 1], q[:, :, i, : i + 1]
        out[:, :, i] = (a * np.log(a / b)).sum(-1)
    return out


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_minilm_v2_relates_queries_keys_and_values(heads: int, ids: Tensor) -> None:
    """Four heads of the student's and six of the teacher's, split again into equal ones."""
    student = decoder(16, 2, n_heads=4)
    teacher = decoder(48, 1, n_layers=3, n_heads=6, kv=2)
    term = RelationTerm(Relation.MINILM_V2, teacher_layer=1, heads=heads, rows=2)
    found = run(term, student, teacher, ids)
    own = relations(student, 1, ids[:2], heads, LENGTH)
    other = relations(teacher, 1, ids[:2], heads, LENGTH)
    expected = sum(kl_of_rows(t, s).mean() for s, t in zip(own, other, strict=True))
    assert found == pytest.approx(expected, rel=CLOSE)


def test_minilm_v2_of_a_twin_is_zero_and_counts_what_counts(ids: Tensor) -> None:
    term = RelationTerm(Relation.MINILM_V2, rows=0)
    assert abs(run(term, decoder(32, 1), decoder(32, 1), ids)) < 1e-6
    student, teacher = decoder(16, 2), decoder(32, 1)
    counted = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    counted[:2, :3] = True
    marks = Marks(counted, torch.zeros(BATCH, LENGTH, dtype=torch.int32))
    cut = run(term, student, teacher, ids[:2, :4])
    assert run(term, student, teacher, ids, marks) == pytest.approx(cut, rel=1e-5)


def test_minilm_v2_looks_into_its_own_sample_alone(ids: Tensor) -> None:
    student, teacher = decoder(16, 2), decoder(32, 1)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * BATCH, dtype=torch.int32)
    counted = segments == 1
    term = RelationTerm(Relation.MINILM_V2, rows=0)
    found = run(term, student, teacher, ids, Marks(counted, segments))
    other = ids.clone()
    other[:, :3] = 11
    assert run(term, student, teacher, other, Marks(counted, segments)) == pytest.approx(
        found, rel=1e-5
    )


@pytest.mark.parametrize(
    ("term", "told"),
    [
        (RelationTerm(Relation.GRAM, teacher_layer=4), "teacher_layer is 4, it has 2"),
        (RelationTerm(Relation.GRAM, student_layer=-3), "student_layer is -3"),
        (RelationTerm(Relation.MINILM_V2, heads=3), "student's q is 16 wide.*heads = 8"),
    ],
)
def test_layers_and_heads_that_do_not_fit_are_refused(term: RelationTerm, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        DistillLoss([decoder(32, 1)], decoder(16, 2).config, DistillSettings((term,)))


@pytest.mark.parametrize("kind", list(Relation))
def test_a_step_down_the_gradient_lowers_it(kind: Relation, ids: Tensor) -> None:
    student, teacher = decoder(16, 2), decoder(32, 1)
    loss = DistillLoss([teacher], student.config, DistillSettings((RelationTerm(kind),)))
    before, _ = loss(student, ids)
    before.backward()
    with torch.no_grad():
        for p in student.parameters():
            if p.grad is not None:
                assert bool(torch.isfinite(p.grad).all())
                p -= 1e-3 * p.grad
    assert loss(student, ids)[0].item() < before.item()
    assert teacher.embed.weight.grad is None


def test_relation_value_takes_no_gradient_to_the_teacher(ids: Tensor) -> None:
    student, teacher = decoder(16, 2), decoder(32, 1)
    own = look(student, ids[:, :-1], None, inside=True)
    with torch.no_grad():
        other = look(teacher, ids[:, :-1], None, inside=True)
    value = relation_value(RelationTerm(), own, other, None, (0, 0))
    value.backward()
    assert student.embed.weight.grad is not None
    assert teacher.embed.weight.grad is None
