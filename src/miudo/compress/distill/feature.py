"""Feature terms: the student's inner states against the teacher's, layer by layer.

For: hidden states through learned projections (Romero et al. 2015; Jiao et al. 2020), attention
transfer (Zagoruyko and Komodakis 2017; Jiao et al. 2020) and MiniLM (Wang et al. 2020).
Not for: relations between tokens that need no layer of equal kind
(`miudo.compress.distill.relation`).
Read next: `miudo.compress.distill.views`, where the states come from.

Shapes: B batch, T positions, N tokens that count, D d_model, H query heads, G groups of heads, b
rows looked at, d a value head's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from miudo.compress.distill.terms import Feature, FeatureTerm, LayerMap
from miudo.compress.distill.views import View
from miudo.config import ModelConfig
from miudo.errors import ConfigError

__all__ = [
    "Project",
    "check_feature",
    "feature_value",
    "grouped_heads",
    "layer_pairs",
    "normalised",
    "projections",
    "row_kl",
]

Project = Callable[[int, Tensor], Tensor]
"""(student's layer, states [N, D]) -> states of the teacher's width."""

_TINY = 1e-6
"""Added to a mean square: a state of zeros has no direction, and must have a gradient."""


def layer_pairs(
    term: FeatureTerm, n_student: int, n_teacher: int, surviving: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """Returns (student's layer, teacher's layer), in order.

    `surviving` says which of the teacher's layers each of the student's was. Raises ConfigError
    for a map that names layers that are not there, or not one for each.
    """
    if term.kind is Feature.MINILM:
        last = term.taught or (n_teacher - 1,)
        return _checked([(n_student - 1, last[0])], n_student, n_teacher, len(last), 1)
    if term.taught:
        pairs = list(enumerate(term.taught))
        return _checked(pairs, n_student, n_teacher, len(pairs), n_student)
    if term.layers is LayerMap.SURVIVING:
        if surviving is None:
            raise ConfigError(
                "it is not known which of the teacher's layers the student's were",
                where="layers",
                remedy="Name them in `taught`, or make the student with --student-layers",
            )
        pairs = list(enumerate(surviving))
        return _checked(pairs, n_student, n_teacher, len(pairs), n_student)
    if term.layers is LayerMap.LAST:
        count = term.last or n_student
        pairs = [(n_student - i, n_teacher - i) for i in range(count, 0, -1)]
        return _checked(pairs, n_student, n_teacher, count, count)
    # Half up, and not to even as `round` does: neighbours stay evenly apart.
    places = [math.floor((i + 1) * n_teacher / n_student + 0.5) - 1 for i in range(n_student)]
    return [(i, max(0, place)) for i, place in enumerate(places)]


def projections(pairs: Sequence[tuple[int, int]], widths: tuple[int, int], seed: int) -> nn.Module:
    """Returns a matrix [D_teacher, D_student] for each pair's student layer; none if equal.

    They start random, from `seed`, and keep the size of what goes through.
    """
    student, teacher = widths
    made = nn.ModuleDict()
    generator = torch.Generator().manual_seed(seed)
    for layer, _ in pairs if student != teacher else ():
        matrix = nn.Linear(student, teacher, bias=False)
        with torch.no_grad():
            matrix.weight.normal_(0.0, student**-0.5, generator=generator)
        made[str(layer)] = matrix
    return made


def feature_value(
    term: FeatureTerm,
    student: View,
    teacher: View,
    pairs: Sequence[tuple[int, int]],
    project: Project,
    counted: Tensor | None,
) -> Tensor:
    """Returns the mean of the term over pairs of layers and tokens that count, float32 [].

    `counted` bool [B, T], None: all. Hidden states and their cosines are compared after each is
    divided by its own root mean square: a few huge channels would own the loss otherwise.
    """
    each: list[Tensor] = []
    for layer, taught_by in pairs:
        if term.kind in (Feature.HIDDEN, Feature.COSINE):
            own = project(layer, normalised(_counted(student.after(layer), counted)))  # N D
            other = normalised(_counted(teacher.after(taught_by), counted))  # N D
            if term.kind is Feature.HIDDEN:
                each.append((own - other).square().mean())
            else:
                each.append(1.0 - F.cosine_similarity(own, other, dim=-1).mean())
            continue
        a = student.log_attention(layer, term.rows)  # b H T T
        b = teacher.log_attention(taught_by, term.rows)
        rows = counted[: len(a)] if counted is not None else None
        if term.kind is Feature.MINILM:
            values = _values(student, layer, term), _values(teacher, taught_by, term)
            each.append(row_kl(a, b, rows) + row_kl(*values, rows))
        else:
            groups = math.gcd(a.shape[1], b.shape[1])
            compare = row_kl if term.kind is Feature.ATTENTION else _row_squares
            each.append(compare(grouped_heads(a, groups), grouped_heads(b, groups), rows))
    return torch.stack(each).mean()


def normalised(x: Tensor) -> Tensor:
    """Returns states [..., D], each divided by its root mean square."""
    return x * (x.square().mean(-1, keepdim=True) + _TINY).rsqrt()


def grouped_heads(rows: Tensor, groups: int) -> Tensor:
    """Returns the log of the mean over neighbouring heads: [b, H, T, T] to [b, G, T, T]."""
    b, h, t, s = rows.shape
    split = rows.reshape(b, groups, h // groups, t, s)  # b G H/G T T
    n = h // groups
    if n == 1:
        return split[:, :, 0]
    hidden = torch.isneginf(split)
    # The gradient of a sum of nothing but exp(-inf) is NaN, masked or not: keep it finite.
    mean = split.masked_fill(hidden, -1e30).logsumexp(2) - math.log(n)
    return mean.masked_fill(hidden.all(2), -math.inf)


def row_kl(student: Tensor, teacher: Tensor, counted: Tensor | None) -> Tensor:
    """Returns the mean of KL(teacher || student) over rows of log-probabilities.

    Both are [b, H, T, T], -inf where none may look; rows are queries, of which `counted` [b, T]
    says which count.
    """
    hidden = torch.isneginf(teacher)
    difference = teacher.masked_fill(hidden, 0.0) - student.masked_fill(hidden, 0.0)
    return _mean_of_rows((teacher.exp() * difference).sum(-1), counted)  # b H T


def check_feature(
    term: FeatureTerm, student: ModelConfig, teacher: ModelConfig, pairs: Sequence[tuple[int, int]]
) -> None:
    """Raises ConfigError for layers whose attention cannot be compared."""
    if term.kind in (Feature.HIDDEN, Feature.COSINE):
        return
    for layer, taught_by in pairs:
        own, other = student.layers[layer], teacher.layers[taught_by]
        if own.window != other.window:
            raise ConfigError(
                f"the student's layer {layer} looks {own.window or 'all the way'} back, the "
                f"teacher's layer {taught_by} {other.window or 'all the way'}",
                where=str(term.kind),
                remedy="Pair layers that see the same, or compare hidden states",
            )
        if term.kind is Feature.MINILM and own.n_heads != other.n_heads:
            raise ConfigError(
                f"the student's last layer has {own.n_heads} heads, the teacher's layer "
                f"{taught_by} {other.n_heads}",
                where=str(term.kind),
                remedy="minilm wants as many: use minilm-v2, which does not",
            )


def _values(view: View, layer: int, term: FeatureTerm) -> Tensor:
    """Log rows [b, H, T, T] of how alike the values of tokens are."""
    _, _, v = view.queries_keys_values(layer, term.rows, rotated=False)
    v = view.repeated(layer, v)  # b H T d
    alike: Tensor = v @ v.transpose(-1, -2) * float(v.shape[-1]) ** -0.5
    return alike.masked_fill(~view.visible(term.rows), -math.inf).log_softmax(-1)


def _row_squares(student: Tensor, teacher: Tensor, counted: Tensor | None) -> Tensor:
    """The mean square difference of probabilities, over what each row may look at."""
    seen = ~torch.isneginf(teacher)
    squares = (student.exp() - teacher.exp()).square() * seen
    return _mean_of_rows(squares.sum(-1) / seen.sum(-1), counted)  # b H T


def _mean_of_rows(values: Tensor, counted: Tensor | None) -> Tensor:
    """The mean of [b, H, T] over heads and rows that count; 0 where none does."""
    if counted is None:
        return values.mean()
    each = values.mean(1)  # b T
    return (each * counted).sum() / counted.sum().clamp_min(1)


def _counted(x: Tensor, counted: Tensor | None) -> Tensor:
    return x.flatten(0, 1) if counted is None else x[counted]  # N D


def _checked(
    pairs: list[tuple[int, int]], n_student: int, n_teacher: int, given: int, wanted: int
) -> list[tuple[int, int]]:
    if given != wanted:
        raise ConfigError(
            f"{given} layers are named, the student has {wanted} that want one",
            where="taught",
            remedy="Name one of the teacher's layers for each",
        )
    for layer, taught_by in pairs:
        if not (0 <= layer < n_student and 0 <= taught_by < n_teacher):
            raise ConfigError(
                f"the student's layer {layer} cannot learn from the teacher's layer {taught_by}: "
                f"they have {n_student} and {n_teacher}",
                where="layers",
                remedy="Name layers that are there, from 0",
            )
    return pairs
