"""The distillation loss: terms added up, with the teachers inside.

For: `DistillLoss`, a `Loss` for `miudo.train.loop.fit` that any `DistillSettings` describes. It
knows the step, for weights that change, and has parameters of its own, the projections between
states of unequal width.
Not for: teachers that are not in memory, or have another tokenizer.
Read next: `miudo.compress.distill.response`, `miudo.compress.distill.feature`.

Shapes: B batch, T positions, N tokens that count, D d_model, V vocab_size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from miudo.compress.distill.feature import (
    check_feature,
    feature_value,
    layer_pairs,
    projections,
)
from miudo.compress.distill.relation import check_relation, relation_value
from miudo.compress.distill.response import Comparison, check_same_vocabulary, response_loss
from miudo.compress.distill.terms import (
    DistillSettings,
    FeatureTerm,
    RelationTerm,
    ResponseTerm,
    Term,
    TextTerm,
)
from miudo.compress.distill.views import View, look
from miudo.compress.method import check_finite
from miudo.config import ModelConfig
from miudo.decoder.decoder import Decoder
from miudo.errors import CheckFailedError, ConfigError
from miudo.train.loss import Loss, Marks

__all__ = ["DistillLoss"]

_LEAST = 1e-6
"""Least value that a term is divided by where it is normalised: it may begin at 0."""

_Inner = FeatureTerm | RelationTerm


@dataclass(frozen=True, slots=True)
class _Batch:
    """What every term compares: the student, the teachers by number, and who counts."""

    student: View
    teachers: dict[int, View]
    counted: Tensor | None
    order: tuple[int, int]


class DistillLoss:
    """(student, ids [B, T + 1], marks) -> the weighted sum of all terms, and each one's value.

    The parts are means over tokens that count, without weights, T^2 included; a term that
    weighs nothing at a step is left out of it, response terms aside. Teachers may be of any
    float type and are not changed; no gradient reaches them. `surviving` says which of the
    teacher's layers the student's were.

    Called as it is, weights are those of the first step; `at` gives those of any other.

    Raises CheckFailedError for a teacher that holds NaN or lies in the student's memory,
    ConfigError for vocabularies that differ and for layers, heads or teachers that are not there.
    """

    def __init__(
        self,
        teachers: Sequence[Decoder],
        student: ModelConfig,
        settings: DistillSettings,
        *,
        seed: int = 0,
        surviving: Sequence[int] | None = None,
        chunk_logits: int | None = None,
    ) -> None:
        for teacher in teachers:
            check_finite(teacher)
        self._teachers, self._student, self._settings = list(teachers), student, settings
        self._seed = seed
        terms = settings.terms
        _check_teachers(terms, len(teachers), settings.teacher_weights)
        vocab = [check_same_vocabulary(t.config, student, settings.shared_vocab) for t in teachers]
        given = settings.teacher_weights or (1.0,) * len(teachers)
        self._responses = [i for i, t in enumerate(terms) if isinstance(t, ResponseTerm | TextTerm)]
        self._comparison = Comparison(
            tuple(t for t in terms if isinstance(t, ResponseTerm | TextTerm)),
            tuple(weight / sum(given) for weight in given),
            min(vocab),
            chunk_logits,
        )
        self._inner = {i: t for i, t in enumerate(terms) if isinstance(t, _Inner)}
        self._pairs = {i: self._paired(t, surviving) for i, t in self._inner.items()}
        self._names = _names([str(term.kind) for term in terms])
        self.learned = self._projections()
        if any(term.normalise for term in terms):
            self.learned.register_buffer("initial", torch.zeros(len(terms)))
        self._compiles = False
        self._fast: DistillLoss | None = None

    def compiled(self) -> DistillLoss:
        """Returns the same loss with its pass over logits and the teachers' blocks compiled."""
        if self._fast is None:
            self._fast = copy.copy(self)
            self._fast._teachers = [_compiled_twin(teacher) for teacher in self._teachers]
            self._fast._compiles = True
        return self._fast

    def at(self, step: int, steps: int, batch: int) -> Loss:
        """Returns the loss with the weights of `step` of `steps` and the points of `batch`."""
        return partial(self._measure, step / steps, batch)

    def __call__(
        self, student: Decoder, ids: Tensor, marks: Marks | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Returns the loss over ids [B, T + 1], or its counted targets, and its parts."""
        return self._measure(0.0, 0, student, ids, marks)

    def _measure(
        self,
        share: float,
        index: int,
        student: Decoder,
        ids: Tensor,
        marks: Marks | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        self._check_student(student)
        weights = [term.weight_at(share) for term in self._settings.terms]
        inner = {i: term for i, term in self._inner.items() if weights[i] > 0.0}
        batch = self._views(student, ids[:, :-1], marks, set(inner), index)
        values: dict[int, Tensor] = {}
        total = torch.zeros((), device=ids.device)
        if self._responses:
            total, means = self._response(batch, ids[:, 1:], weights)
            values.update(zip(self._responses, means.unbind(), strict=True))
        with torch.autocast(ids.device.type, enabled=False):
            for i, term in inner.items():
                values[i] = self._inner_value(i, term, batch)
                total = total + values[i] * self._factor(i, weights[i], values[i])
        return total, {self._names[i]: float(values[i].detach()) for i in sorted(values)}

    def _views(
        self, student: Decoder, inputs: Tensor, marks: Marks | None, inner: set[int], index: int
    ) -> _Batch:
        """Runs the models that these terms need, and keeps the streams of those looked into."""
        inside = {self._inner[i].teacher for i in inner}
        asked = set(range(len(self._teachers))) if self._comparison.needs_teachers else inside
        segments = None if marks is None else marks.segments
        taught = {}
        with torch.no_grad():
            for i in sorted(asked):
                teacher = self._teachers[i]
                teacher.to(inputs.device)  # does nothing from the second call on
                taught[i] = look(teacher, inputs, segments, inside=i in inside)
        learnt = look(student, inputs, segments, inside=bool(inside))
        counted = None if marks is None else marks.counted
        return _Batch(learnt, taught, counted, (self._seed, index))

    def _response(
        self, batch: _Batch, targets: Tensor, weights: list[float]
    ) -> tuple[Tensor, Tensor]:
        """Returns the weighted sum of the response terms, and their means [R]."""
        counted = batch.counted

        def flat(x: Tensor) -> Tensor:
            return x.flatten(0, 1) if counted is None else x[counted]  # N ...

        comparison = self._comparison
        chunk = comparison.chunk()
        if self._compiles:
            # How many tokens are counted changes from batch to batch.
            chunk = comparison.compiled_chunk(dynamic=counted is not None)
        student, asked = batch.student, comparison.needs_teachers
        taught = [(v.decoder, flat(v.hidden)) for v in batch.teachers.values()] if asked else []
        learnt, wanted = flat(student.hidden), flat(targets).long()
        run = partial(response_loss, student.decoder, learnt, taught, wanted)
        each = [weights[i] for i in self._responses]
        if self._unmeasured(self._responses):
            with torch.no_grad():
                _, first = run(learnt.new_tensor(each, dtype=torch.float32), comparison, chunk)
            for i, value in zip(self._responses, first.unbind(), strict=True):
                self._factor(i, weights[i], value)
        factors = [self._factor(i, weights[i]) for i in self._responses]
        return run(learnt.new_tensor(factors, dtype=torch.float32), comparison, chunk)

    def _inner_value(self, i: int, term: _Inner, batch: _Batch) -> Tensor:
        student, teacher = batch.student, batch.teachers[term.teacher]
        if isinstance(term, RelationTerm):
            return relation_value(term, student, teacher, batch.counted, batch.order)
        matrices = self.learned.get_submodule(str(i)) if str(i) in self._projected else None

        def project(layer: int, x: Tensor) -> Tensor:
            if matrices is None:
                return x
            projected: Tensor = matrices.get_submodule(str(layer))(x)
            return projected

        return feature_value(term, student, teacher, self._pairs[i], project, batch.counted)

    def _factor(self, i: int, weight: float, value: Tensor | None = None) -> float:
        """The weight, over the term's first value where it is normalised; `value` may be it."""
        if not self._settings.terms[i].normalise:
            return weight
        initial: Tensor = self.learned.get_buffer("initial")
        if value is not None and float(initial[i]) == 0.0:
            initial[i] = value.detach().clamp_min(_LEAST)
        return weight / float(initial[i])

    def _unmeasured(self, terms: Sequence[int]) -> bool:
        found = [i for i in terms if self._settings.terms[i].normalise]
        return bool(found) and bool((self.learned.get_buffer("initial")[found] == 0.0).any())

    def _paired(self, term: _Inner, surviving: Sequence[int] | None) -> list[tuple[int, int]]:
        teacher = self._teachers[term.teacher].config
        if isinstance(term, RelationTerm):
            check_relation(term, self._student, teacher)
            return []
        pairs = layer_pairs(term, self._student.n_layers, teacher.n_layers, surviving)
        check_feature(term, self._student, teacher, pairs)
        return pairs

    def _projections(self) -> nn.Module:
        made = nn.ModuleDict()
        for i, term in self._inner.items():
            if not (isinstance(term, FeatureTerm) and term.projects):
                continue
            teacher = self._teachers[term.teacher].config
            widths = (self._student.d_model, teacher.d_model)
            if widths[0] != widths[1]:
                made[str(i)] = projections(self._pairs[i], widths, self._seed + i)
        self._projected = frozenset(made)
        return made

    def _check_student(self, student: Decoder) -> None:
        if student.config != self._student:
            raise ConfigError(
                "the student has another shape than the loss was made for",
                remedy="Make a DistillLoss for this student",
            )
        own = student.embed.weight.data_ptr()
        if any(teacher.embed.weight.data_ptr() == own for teacher in self._teachers):
            raise CheckFailedError(
                "the teacher is the student itself, or shares its memory: it would be taught its "
                "own logits",
                remedy="Give the teacher as a decoder of its own",
            )


def _check_teachers(terms: Sequence[Term], n: int, weights: Sequence[float]) -> None:
    if not n:
        raise ConfigError("there is no teacher", remedy="Give one or more")
    if weights and len(weights) != n:
        raise ConfigError(
            f"{len(weights)} weights for {n} teachers",
            where="teacher_weights",
            remedy="Give one for each teacher, or none",
        )
    for term in terms:
        if isinstance(term, _Inner) and term.teacher >= n:
            raise ConfigError(
                f"{term.kind} asks teacher {term.teacher}, there are {n}",
                where="teacher",
                remedy="Count teachers from 0",
            )


def _names(kinds: Sequence[str]) -> list[str]:
    """Each term's name in the log; those of one kind are numbered from the second on."""
    plain = [kind.replace("-", "_") for kind in kinds]
    before = [plain[:i].count(name) for i, name in enumerate(plain)]
    return [f"{name}_{n + 1}" if n else name for name, n in zip(plain, before, strict=True)]


def _compiled_twin(teacher: Decoder) -> Decoder:
    """Returns a decoder on the teacher's own memory whose blocks are compiled."""
    with torch.device("meta"):
        twin = Decoder(teacher.config)
    twin.load_state_dict(teacher.state_dict(), assign=True)
    for block in twin.layers:
        block.compile(dynamic=False)
    return twin
