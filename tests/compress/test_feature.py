"""Feature terms against small NumPy implementations, written from the papers' formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from miudo.compress.distill.feature import (
    feature_value,
    grouped_heads,
    layer_pairs,
    normalised,
    projections,
    row_kl,
)
from miudo.compress.distill.loss import DistillLoss
from miudo.compress.distill.terms import DistillSettings, Feature, FeatureTerm, LayerMap, TextTerm
from miudo.compress.distill.views import View, look
from miudo.config import ModelConfig, Position
from miudo.decoder.attention import Capture
from miudo.decoder.decoder import Decoder
from miudo.errors import ConfigError
from miudo.train.loss import Marks

Array = npt.NDArray[np.float64]
# float32 against float64, some hundred terms.
CLOSE = 2e-5
BATCH, LENGTH, VOCAB = 3, 7, 37


def decoder(
    d_model: int, seed: int, *, n_layers: int = 2, n_heads: int = 4, kv: int = 2, **rest: Any
) -> Decoder:
    made = Decoder(
        ModelConfig.uniform(
            n_layers=n_layers, d_model=d_model, n_heads=n_heads, n_kv_heads=kv, d_ff=32,
            vocab_size=VOCAB, max_positions=16, **rest,
        )
    )  # fmt: skip
    made.initialise(seed)
    with torch.no_grad():  # so that attention is not flat
        for name, value in made.named_parameters():
            if name.endswith((".q.weight", ".k.weight", ".v.weight")):
                value.mul_(3.0)
    return made


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCAB, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(5))


def run(
    term: FeatureTerm, student: Decoder, teacher: Decoder, ids: Tensor, marks: Marks | None = None
) -> float:
    loss = DistillLoss([teacher], student.config, DistillSettings((term,)))
    value, parts = loss(student, ids, marks)
    (name,) = parts
    assert value.item() == pytest.approx(parts[name], rel=1e-6)
    value.backward()
    return value.item()


def streams(decoder: Decoder, ids: Tensor) -> list[Array]:
    capture = Capture()
    with torch.no_grad():
        decoder(ids[:, :-1], capture=capture)
    return [h.double().numpy() for h in capture.hidden]


def attention_rows(decoder: Decoder, ids: Tensor) -> list[Array]:
    """As the forward pass itself gives them."""
    capture = Capture(want_attention=True)
    with torch.no_grad():
        decoder(ids[:, :-1], capture=capture)
    return [a.double().numpy() for a in capture.attention]


def rms(x: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def kl_of_rows(p: Array, q: Array) -> Array:
    """[b, H, T]: the KL of each row, over the lower triangle alone."""
    out = np.zeros(p.shape[:3])
    for i in range(p.shape[2]):
        a, b = p[:, :, i, : i + 1], q[:, :, i, : i + 1]
        out[:, :, i] = (a * np.log(a / b)).sum(-1)
    return out


@pytest.mark.parametrize("kind", [Feature.HIDDEN, Feature.COSINE])
@pytest.mark.parametrize("width", [16, 32])
def test_hidden_states(kind: Feature, width: int, ids: Tensor) -> None:
    student, teacher = decoder(width, 2), decoder(32, 1, n_layers=4)
    term = FeatureTerm(kind)
    loss = DistillLoss([teacher], student.config, DistillSettings((term,)), seed=3)
    value, _ = loss(student, ids)
    matrices = {n: p.detach().double().numpy() for n, p in loss.learned.named_parameters()}
    assert len(matrices) == (0 if width == 32 else 2)
    own, other = streams(student, ids), streams(teacher, ids)
    each = []
    for i, j in ((0, 1), (1, 3)):  # two layers of four: the second and the last
        a, b = rms(own[i + 1]), rms(other[j + 1])
        if matrices:
            a = a @ matrices[f"0.{i}.weight"].T
        if kind is Feature.HIDDEN:
            each.append((((a - b) ** 2).sum(-1) / 32).mean())
        else:
            norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
            each.append(1 - ((a * b).sum(-1) / norms).mean())
    assert value.item() == pytest.approx(np.mean(each), rel=CLOSE)
    value.backward()
    assert all(p.grad is not None for p in loss.learned.parameters())
    assert teacher.embed.weight.grad is None


def test_a_huge_channel_of_the_teacher_does_not_own_the_loss() -> None:
    """Each state is divided by its own root mean square: values stay of size one."""
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 1e4
    assert float(normalised(x).square().mean()) == pytest.approx(1.0, rel=1e-5)


def test_a_state_of_zeros_has_a_finite_gradient() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    normalised(x).sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


def test_projections_begin_the_same_for_a_seed_and_keep_sizes() -> None:
    pairs = [(0, 1), (1, 3)]
    one, two = projections(pairs, (64, 256), 7), projections(pairs, (64, 256), 7)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    x = normalised(torch.randn(200, 64, generator=torch.Generator().manual_seed(1)))
    projected = one.get_submodule("0")(x)
    assert float(projected.detach().square().mean()) == pytest.approx(1.0, rel=0.1)
    assert not list(projections(pairs, (64, 64), 7).parameters())


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("kind", [Feature.ATTENTION, Feature.ATTENTION_MSE])
def test_attention_rows(kind: Feature, rows: int, ids: Tensor) -> None:
    """Four heads against six: two groups, each the mean of its heads."""
    student = decoder(16, 2, n_heads=4)
    teacher = decoder(48, 1, n_layers=4, n_heads=6, kv=3)
    found = run(FeatureTerm(kind, rows=rows), student, teacher, ids)
    own, other = attention_rows(student, ids), attention_rows(teacher, ids)
    each = []
    for i, j in ((0, 1), (1, 3)):
        a, b = own[i][: rows or None], other[j][: rows or None]
        a = a.reshape(len(a), 2, 2, LENGTH, LENGTH).mean(2)
        b = b.reshape(len(b), 2, 3, LENGTH, LENGTH).mean(2)
        if kind is Feature.ATTENTION:
            each.append(kl_of_rows(b, a).mean())
        else:
            width = np.arange(1, LENGTH + 1)
            each.append((((a - b) ** 2).sum(-1) / width).mean())
    assert found == pytest.approx(np.mean(each), rel=CLOSE)


@pytest.mark.parametrize(
    "rest",
    [
        {"position": Position.ALIBI},
        {"attn_softcap": 2.0},
        {"position": Position.LEARNED},
    ],
)
def test_attention_is_that_of_the_forward_pass(rest: dict[str, Any], ids: Tensor) -> None:
    """Rotation, ALiBi and caps come from the decoder's own functions."""
    model = decoder(32, 1, **rest)
    with torch.no_grad():
        view = look(model, ids[:, :-1], None, inside=True)
        for layer, expected in enumerate(attention_rows(model, ids)):
            found = view.log_attention(layer, 0).exp().double().numpy()
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_attention_of_marked_rows_is_that_of_the_forward_pass(ids: Tensor) -> None:
    model = decoder(32, 1)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * BATCH, dtype=torch.int32)
    capture = Capture(want_attention=True)
    with torch.no_grad():
        model(ids[:, :-1], capture=capture, segments=segments)
        view = look(model, ids[:, :-1], segments, inside=True)
        for layer, expected in enumerate(capture.attention):
            torch.testing.assert_close(
                view.log_attention(layer, 0).exp(), expected, atol=1e-6, rtol=1e-5
            )


def test_minilm_is_attention_and_value_relations_of_the_last_layer(ids: Tensor) -> None:
    student, teacher = decoder(16, 2, n_heads=4), decoder(32, 1, n_layers=3, n_heads=4, kv=4)
    found = run(FeatureTerm(Feature.MINILM), student, teacher, ids)
    attention = kl_of_rows(attention_rows(teacher, ids)[-1], attention_rows(student, ids)[-1])

    def value_rows(model: Decoder) -> Array:
        stream, block = streams(model, ids)[-2], model.layers[-1]
        gain = block.attn_norm.weight.detach().double().numpy()
        h = stream / np.sqrt((stream**2).mean(-1, keepdims=True) + model.config.norm_eps) * gain
        layer = model.config.layers[-1]
        v = h @ block.attn.v.weight.detach().double().numpy().T
        v = v.reshape(BATCH, LENGTH, layer.n_kv_heads, layer.v_head_dim).transpose(0, 2, 1, 3)
        v = v.repeat(layer.n_heads // layer.n_kv_heads, axis=1)
        scores = v @ v.transpose(0, 1, 3, 2) / math.sqrt(layer.v_head_dim)
        scores = np.where(np.tril(np.ones((LENGTH, LENGTH))), scores, -np.inf)
        e = np.exp(scores - scores.max(-1, keepdims=True))
        out: Array = e / e.sum(-1, keepdims=True)
        return out

    values = kl_of_rows(value_rows(teacher), value_rows(student))
    assert found == pytest.approx(attention.mean() + values.mean(), rel=CLOSE)


@pytest.mark.parametrize("kind", list(Feature))
def test_only_tokens_that_count_do(kind: Feature, ids: Tensor) -> None:
    """What stands at places that do not count changes nothing, being after all that do."""
    student, teacher = decoder(16, 2), decoder(32, 1, n_heads=4, n_layers=3)
    counted = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    counted[:2, :3] = True
    marks = Marks(counted, torch.zeros(BATCH, LENGTH, dtype=torch.int32))
    term = FeatureTerm(kind, rows=0)
    found = run(term, student, teacher, ids, marks)
    assert found > 0
    other = ids.clone()
    other[2], other[:2, 3:] = 7, 9
    assert run(term, student, teacher, other, marks) == pytest.approx(found, rel=1e-5)
    # And these are all: rows cut to those that count give the same mean.
    assert run(term, student, teacher, ids[:2, :4]) == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("kind", list(Feature))
def test_a_twin_of_the_teacher_has_nothing_to_learn(kind: Feature, ids: Tensor) -> None:
    found = run(FeatureTerm(kind), decoder(32, 1), decoder(32, 1), ids)
    assert abs(found) < 1e-6


@pytest.mark.parametrize("kind", list(Feature))
def test_a_step_down_the_gradient_lowers_it(kind: Feature, ids: Tensor) -> None:
    student, teacher = decoder(16, 2), decoder(32, 1, n_heads=4)
    loss = DistillLoss([teacher], student.config, DistillSettings((FeatureTerm(kind),)))
    before, _ = loss(student, ids)
    before.backward()
    with torch.no_grad():
        for p in [*student.parameters(), *loss.learned.parameters()]:
            if p.grad is not None:
                assert bool(torch.isfinite(p.grad).all())
                p -= 1e-3 * p.grad
    assert loss(student, ids)[0].item() < before.item()


def test_grouped_heads_keep_the_gradient_finite_where_none_may_look() -> None:
    scores = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    leaf = scores.requires_grad_()
    hidden = ~torch.ones(5, 5, dtype=torch.bool).tril()
    rows = leaf.masked_fill(hidden, -math.inf).log_softmax(-1)
    row_kl(grouped_heads(rows, 2), grouped_heads(rows.detach().flip(1), 2), None).backward()
    assert leaf.grad is not None
    assert bool(torch.isfinite(leaf.grad).all())
    assert bool((leaf.grad[..., hidden] == 0).all())


@pytest.mark.parametrize(
    ("students", "teachers", "expected"),
    [
        (2, 4, [1, 3]),
        (4, 4, [0, 1, 2, 3]),
        (3, 8, [2, 4, 7]),  # 8/3 = 2.67, 16/3 = 5.33, 8
        (4, 6, [1, 2, 4, 5]),  # 1.5 and 4.5 go up
        (4, 2, [0, 0, 1, 1]),
        (1, 12, [11]),
    ],
)
def test_the_uniform_map_ends_at_the_last_layer(
    students: int, teachers: int, expected: list[int]
) -> None:
    pairs = layer_pairs(FeatureTerm(), students, teachers)
    assert pairs == list(enumerate(expected))


def test_other_maps() -> None:
    last = FeatureTerm(layers=LayerMap.LAST, last=2)
    assert layer_pairs(last, 3, 6) == [(1, 4), (2, 5)]
    assert layer_pairs(FeatureTerm(layers=LayerMap.LAST), 2, 6) == [(0, 4), (1, 5)]
    surviving = FeatureTerm(layers=LayerMap.SURVIVING)
    assert layer_pairs(surviving, 3, 6, (0, 2, 5)) == [(0, 0), (1, 2), (2, 5)]
    assert layer_pairs(FeatureTerm(taught=(1, 1)), 2, 6) == [(0, 1), (1, 1)]
    assert layer_pairs(FeatureTerm(Feature.MINILM, taught=(4,)), 2, 6) == [(1, 4)]


@pytest.mark.parametrize(
    ("term", "cure"),
    [
        (FeatureTerm(layers=LayerMap.SURVIVING), "taught"),
        (FeatureTerm(taught=(0,)), "1 layers are named, the student has 2"),
        (FeatureTerm(taught=(0, 4)), "teacher's layer 4"),
        (FeatureTerm(layers=LayerMap.LAST, last=3), "layer -1"),
        (FeatureTerm(Feature.MINILM, taught=(1, 2)), "2 layers are named"),
    ],
)
def test_maps_to_layers_that_are_not_there_are_refused(term: FeatureTerm, cure: str) -> None:
    with pytest.raises(ConfigError, match=cure):
        layer_pairs(term, 2, 4)


def test_minilm_wants_as_many_heads() -> None:
    student, teacher = decoder(16, 2, n_heads=2, kv=1), decoder(32, 1, n_heads=4)
    with pytest.raises(ConfigError, match=r"2 heads.*4.*minilm-v2"):
        run(FeatureTerm(Feature.MINILM), student, teacher, torch.zeros(1, 4, dtype=torch.long))


def test_windows_that_differ_are_refused() -> None:
    student, teacher = decoder(16, 2, window=3), decoder(32, 1)
    settings = DistillSettings((FeatureTerm(Feature.ATTENTION),))
    with pytest.raises(ConfigError, match=r"looks 3 back.*all the way"):
        DistillLoss([teacher], student.config, settings)


def test_a_second_teacher_may_teach_features(ids: Tensor) -> None:
    student, first, second = decoder(16, 2), decoder(32, 1), decoder(48, 4)
    term = FeatureTerm(teacher=1)
    loss = DistillLoss([first, second], student.config, DistillSettings((term, TextTerm())))
    assert {tuple(p.shape) for p in loss.learned.parameters()} == {(48, 16)}
    alone = DistillLoss([second], student.config, DistillSettings((FeatureTerm(), TextTerm())))
    assert loss(student, ids)[1] == pytest.approx(alone(student, ids)[1], rel=1e-6)
    with pytest.raises(ConfigError, match="asks teacher 1, there are 1"):
        DistillLoss([first], student.config, DistillSettings((term,)))


def test_feature_value_is_a_mean_over_pairs(ids: Tensor) -> None:
    student, teacher = decoder(32, 2), decoder(32, 1)
    with torch.no_grad():
        a: View = look(student, ids[:, :-1], None, inside=True)
        b: View = look(teacher, ids[:, :-1], None, inside=True)
        both, one, two = (
            float(feature_value(FeatureTerm(), a, b, pairs, lambda _, x: x, None))
            for pairs in ([(0, 0), (1, 1)], [(0, 0)], [(1, 1)])
        )
    assert both == pytest.approx((one + two) / 2, rel=1e-6)
