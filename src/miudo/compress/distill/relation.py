"""Relation terms: how tokens lie to each other, in the student as in the teacher.

For: distances and angles (Park et al. 2019, RKD), similarities (Tung and Mori 2019), centred
kernel alignment (Kornblith et al. 2019), and relations of queries, keys and values (Wang et al.
2021, MiniLMv2). None needs a projection: widths and heads may differ.
Not for: states one by one (`miudo.compress.distill.feature`).
Read next: `miudo.compress.distill.loss`, which adds them up.

Shapes: n points, D a state's width (not the same on both sides), b rows looked at, T positions,
A relation heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from miudo.compress.distill.feature import row_kl
from miudo.compress.distill.terms import Points, Relation, RelationTerm
from miudo.compress.distill.views import View
from miudo.config import LayerConfig, ModelConfig
from miudo.errors import ConfigError
from miudo.philox import permutation

__all__ = [
    "angles",
    "centred_alignment",
    "check_relation",
    "distances",
    "relation_value",
    "similarities",
]

_TINY = 1e-12
"""Least squared distance: the root of 0 has an infinite gradient."""
_FEWEST = 4
"""Points that the unbiased alignment needs; all relations ask for as many."""


def relation_value(
    term: RelationTerm,
    student: View,
    teacher: View,
    counted: Tensor | None,
    order: tuple[int, int],
) -> Tensor:
    """Returns the term for one batch, float32 []; 0 if it has fewer points than 4.

    `counted` bool [B, T] says whose tokens may be points; None: all. `order` (seed, batch)
    chooses them: the same in both models, others in every batch.
    """
    own, other = _layers(term, student.decoder.config, teacher.decoder.config)
    if term.kind is Relation.MINILM_V2:
        return _head_relations(term, student, teacher, (own, other), counted)
    a, b = student.after(own), teacher.after(other)  # B T D
    if term.of is Points.ROWS:
        points = _row_means(a, counted), _row_means(b, counted)
    else:
        flat = a.flatten(0, 1), b.flatten(0, 1)
        places = torch.arange(len(flat[0]), device=a.device)
        places = places if counted is None else places[counted.flatten()]
        points = flat[0][places], flat[1][places]
    n = len(points[0])
    if n < _FEWEST:
        return a.sum() * 0.0
    chosen = torch.from_numpy(permutation(*order, n)[: term.most_points]).to(a.device)
    return _COMPARE[term.kind](points[0][chosen], points[1][chosen])


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the smooth L1 difference of all pairs' distances; points are [n, D].

    Distances are told in units of their own mean, so that scales may differ.
    """
    n = len(student)
    apart = ~torch.eye(n, dtype=torch.bool, device=student.device)

    def relative(points: Tensor) -> Tensor:
        # In float64: products of near points differ by less than float32 can tell.
        exact = points.double() - points.double().mean(0)
        sizes = exact.square().sum(-1)
        squares = sizes[:, None] + sizes[None, :] - 2.0 * exact @ exact.t()
        far = squares.clamp_min(_TINY).sqrt()[apart]
        return far / far.mean()

    return F.smooth_l1_loss(relative(student), relative(teacher)).to(student.dtype)


def angles(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the smooth L1 difference of the cosines at j of all triples i, j, k.

    Of three different points each, so n^3 of them.
    """
    n = len(student)
    index = torch.arange(n, device=student.device)
    i, j, k = index[:, None], index[:, None, None], index[None, :]
    different = (i != j) & (k != j) & (i != k)  # j i k

    def cosines(points: Tensor) -> Tensor:
        steps = points[None, :, :] - points[:, None, :]  # j i D: from j to i
        norms = steps.square().sum(-1, keepdim=True).clamp_min(_TINY).sqrt()
        units = steps / norms
        return (units @ units.transpose(-1, -2))[different]

    return F.smooth_l1_loss(cosines(student), cosines(teacher))


def similarities(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the mean square difference of the Gram matrices, each row made of length 1."""
    rows = [F.normalize(points @ points.t(), dim=-1) for points in (student, teacher)]
    return (rows[0] - rows[1]).square().mean()


def centred_alignment(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns 1 - linear CKA of points [n, D], debiased (Song et al. 2012).

    The plain one is near 1 for any two models with fewer points than channels.
    """
    a, b = student @ student.t(), teacher @ teacher.t()  # n n
    # Of huge channels products overflow nothing, but their ratio loses digits.
    a, b = (g / g.diagonal().mean().clamp_min(_TINY) for g in (a, b))
    both = (_unbiased_hsic(a, a) * _unbiased_hsic(b, b)).clamp_min(_TINY).sqrt()
    return 1.0 - _unbiased_hsic(a, b) / both


def check_relation(term: RelationTerm, student: ModelConfig, teacher: ModelConfig) -> None:
    """Raises ConfigError for layers that are not there, or widths that heads do not divide."""
    own, other = _layers(term, student, teacher)
    if term.kind is not Relation.MINILM_V2:
        return
    heads = term.heads or student.layers[own].n_heads
    for name, layer in (("student", student.layers[own]), ("teacher", teacher.layers[other])):
        for what, width in zip("qkv", _widths(layer), strict=True):
            if width % heads:
                raise ConfigError(
                    f"the {name}'s {what} is {width} wide, which {heads} relation heads do not "
                    "divide",
                    where="heads",
                    remedy=f"Give heads = {math.gcd(*_widths(layer))} or one of its divisors",
                )


def _head_relations(
    term: RelationTerm,
    student: View,
    teacher: View,
    layers: tuple[int, int],
    counted: Tensor | None,
) -> Tensor:
    """The KL of token relations among queries, among keys and among values, added up."""
    heads = term.heads or student.decoder.config.layers[layers[0]].n_heads
    seen = student.visible(term.rows)

    def relations(view: View, layer: int) -> list[Tensor]:
        found = []
        for x in view.queries_keys_values(layer, term.rows, rotated=False):
            whole = x.transpose(1, 2).flatten(2)  # b T H*d
            split = whole.reshape(*whole.shape[:2], heads, -1).transpose(1, 2)  # b A T d
            alike = split @ split.transpose(-1, -2) * split.shape[-1] ** -0.5  # b A T T
            found.append(alike.masked_fill(~seen, -math.inf).log_softmax(-1))
        return found

    mine, theirs = relations(student, layers[0]), relations(teacher, layers[1])
    rows = counted[: len(mine[0])] if counted is not None else None
    each = [row_kl(a, b, rows) for a, b in zip(mine, theirs, strict=True)]
    return torch.stack(each).sum()


def _layers(term: RelationTerm, student: ModelConfig, teacher: ModelConfig) -> tuple[int, int]:
    """Both layers, counted from 0."""
    found = []
    for name, layer, n in (
        ("student", term.student_layer, student.n_layers),
        ("teacher", term.teacher_layer, teacher.n_layers),
    ):
        if not -n <= layer < n:
            raise ConfigError(
                f"{name}_layer is {layer}, it has {n} layers", remedy=f"Allowed are {-n} to {n - 1}"
            )
        found.append(layer % n)
    return found[0], found[1]


def _widths(layer: LayerConfig) -> tuple[int, int, int]:
    kv = layer.n_kv_heads
    return layer.n_heads * layer.head_dim, kv * layer.head_dim, kv * layer.v_head_dim


def _row_means(x: Tensor, counted: Tensor | None) -> Tensor:
    """The mean state [B', D] of every row that has a token that counts."""
    if counted is None:
        return x.mean(1)
    some = counted.any(1)
    weight = counted[some].to(x.dtype)[..., None]  # B' T 1
    return (x[some] * weight).sum(1) / weight.sum(1)


def _unbiased_hsic(a: Tensor, b: Tensor) -> Tensor:
    n = len(a)
    hollow = ~torch.eye(n, dtype=torch.bool, device=a.device)
    a, b = a * hollow, b * hollow
    trace = (a * b).sum()
    means = a.sum() * b.sum() / ((n - 1) * (n - 2))
    cross = 2.0 * (a.sum(0) @ b.sum(0)) / (n - 2)
    return (trace + means - cross) / (n * (n - 3))


_COMPARE: dict[Relation, Callable[[Tensor, Tensor], Tensor]] = {
    Relation.DISTANCE: distances,
    Relation.ANGLE: angles,
    Relation.GRAM: similarities,
    Relation.CKA: centred_alignment,
}
