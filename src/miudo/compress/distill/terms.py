"""What a student learns from its teachers: terms, each with its weight and its time.

For: the settings of distillation. One loss is a sum of terms of four sorts: next-token
distributions, the text itself, states inside the models, relations between states.
Not for: computing them (`miudo.compress.distill.loss`).
Read next: `miudo.compress.distill.loss`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Self

from miudo.compress.distill.divergence import ALPHA, TEMPERATURE, Divergence
from miudo.compress.method import in_range
from miudo.compress.settings import settings_from_json, settings_to_json
from miudo.errors import ConfigError
from miudo.limits import LIMITS

__all__ = [
    "DistillSettings",
    "Feature",
    "FeatureTerm",
    "LayerMap",
    "Points",
    "Relation",
    "RelationTerm",
    "ResponseTerm",
    "Schedule",
    "Term",
    "TextTerm",
    "Weighted",
    "term_class",
    "term_from_json",
]


class Schedule(StrEnum):
    """How a weight goes over a run: as it is, down to 0 by `until`, or up to itself by then."""

    CONSTANT = "constant"
    FALL = "fall"
    RISE = "rise"


class Feature(StrEnum):
    """What inside the models is compared; see `miudo.compress.distill.feature`."""

    HIDDEN = "hidden"
    COSINE = "cosine"
    ATTENTION = "attention"
    ATTENTION_MSE = "attention-mse"
    MINILM = "minilm"


class Relation(StrEnum):
    """Which relation between states; see `miudo.compress.distill.relation`."""

    DISTANCE = "distance"
    ANGLE = "angle"
    GRAM = "gram"
    CKA = "cka"
    MINILM_V2 = "minilm-v2"


class LayerMap(StrEnum):
    """Which of the teacher's layers teaches which of the student's.

    `uniform` spreads them evenly, last to last. `last` pairs the last ones of both.
    `surviving` is for a student made of the teacher's own layers: each learns from the one it
    was.
    """

    UNIFORM = "uniform"
    LAST = "last"
    SURVIVING = "surviving"


class Points(StrEnum):
    """Between what relations hold: single tokens, or the means of a batch's rows."""

    TOKENS = "tokens"
    ROWS = "rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """What every term has.

    `until` is a share of the run's steps, for a schedule that is not constant. `normalise`
    divides the term by its value in the run's first batch, so that weights of different terms
    can be compared.
    """

    weight: float = 1.0
    schedule: Schedule = Schedule.CONSTANT
    until: float = 0.5
    normalise: bool = False

    def weight_at(self, share: float) -> float:
        """Returns the weight when `share` of the run's steps are done, from 0 to below 1."""
        passed = min(1.0, share / self.until)
        if self.schedule is Schedule.FALL:
            return self.weight * (1.0 - passed)
        return self.weight * passed if self.schedule is Schedule.RISE else self.weight


@dataclass(frozen=True, slots=True)
class ResponseTerm(Weighted):
    """T^2 times a divergence of the next-token distributions at temperature T, a token.

    `mix` is the beta of `jensen-shannon` or the alpha of the skew ones; None: the usual one.
    Raises ConfigError for a value out of range.
    """

    kind: Divergence = Divergence.FORWARD_KL
    temperature: float = 1.0
    mix: float | None = None

    def __post_init__(self) -> None:
        _check_term(self)
        in_range("temperature", self.temperature, 0.05, 100.0)
        if self.mix is not None:
            _unused_unless("mix", self.kind.default_mix > 0.0, self.kind)
            # A skew of 1 compares a distribution with itself.
            most = 1.0 if self.kind is Divergence.JENSEN_SHANNON else 0.99
            in_range("mix", self.mix, 0.0, most)

    @property
    def share(self) -> float:
        """The mix in use."""
        return self.kind.default_mix if self.mix is None else self.mix


@dataclass(frozen=True, slots=True)
class TextTerm(Weighted):
    """Cross-entropy with the text's own next token: plain training."""

    kind: ClassVar[str] = "cross-entropy"

    def __post_init__(self) -> None:
        _check_term(self)


@dataclass(frozen=True, slots=True)
class FeatureTerm(Weighted):
    """States inside, layer by layer.

    `layers` pairs them; with `last`, `last` of them (0: all of the student's). `taught`, if
    given, names the teacher's layer for each of the student's instead (for `minilm`: the one).
    Attention is compared on the first `rows` of a batch (0: all), for it costs T^2. `teacher`
    counts teachers from 0.
    """

    kind: Feature = Feature.HIDDEN
    layers: LayerMap = LayerMap.UNIFORM
    last: int = 0
    taught: tuple[int, ...] = ()
    rows: int = 4
    teacher: int = 0

    def __post_init__(self) -> None:
        _check_term(self)
        in_range("last", self.last, 0, LIMITS.n_layers, whole=True)
        in_range("rows", self.rows, 0, 1 << 20, whole=True)
        in_range("teacher", self.teacher, 0, 1 << 10, whole=True)
        _check_tuple("taught", self.taught)
        for layer in self.taught:
            in_range("taught", layer, 0, LIMITS.n_layers - 1, whole=True)
        if self.last:
            _unused_unless("last", self.layers is LayerMap.LAST and not self.taught, self.layers)

    @property
    def projects(self) -> bool:
        """Whether states go through a learned matrix where widths differ."""
        return self.kind in (Feature.HIDDEN, Feature.COSINE)


@dataclass(frozen=True, slots=True)
class RelationTerm(Weighted):
    """Relations between `points` states of one layer of each model, at the same places.

    Layers count from 0, or from the end below it. `points` 0 is 64 (32 for `angle`, which costs
    their cube). `minilm-v2` has no points: it relates all tokens of a row to each other in
    `heads` relation heads (0: as many as the student's layer has), on the first `rows` rows.
    """

    kind: Relation = Relation.DISTANCE
    student_layer: int = -1
    teacher_layer: int = -1
    points: int = 0
    of: Points = Points.TOKENS
    heads: int = 0
    rows: int = 4
    teacher: int = 0

    def __post_init__(self) -> None:
        _check_term(self)
        most = LIMITS.n_layers
        in_range("student_layer", self.student_layer, -most, most - 1, whole=True)
        in_range("teacher_layer", self.teacher_layer, -most, most - 1, whole=True)
        in_range("heads", self.heads, 0, 1 << 10, whole=True)
        in_range("rows", self.rows, 0, 1 << 20, whole=True)
        in_range("teacher", self.teacher, 0, 1 << 10, whole=True)
        in_range("points", self.points, 0, 48 if self.kind is Relation.ANGLE else 1024, whole=True)
        if self.points:
            _unused_unless("points", self.kind is not Relation.MINILM_V2, self.kind)
            in_range("points", self.points, 4, 1024, whole=True)
        if self.heads:
            _unused_unless("heads", self.kind is Relation.MINILM_V2, self.kind)

    @property
    def most_points(self) -> int:
        """How many points are compared at most."""
        return self.points or (32 if self.kind is Relation.ANGLE else 64)


Term = ResponseTerm | TextTerm | FeatureTerm | RelationTerm


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """The loss is the sum of `terms`, each times its weight.

    Several teachers give one distribution, the mean of their probabilities by
    `teacher_weights` (none: equal). `shared_vocab` is how many ids of the vocabulary are real,
    where teacher and student pad the same one to different sizes. Raises ConfigError for
    values out of range, and for terms that all weigh nothing at some time of the run.
    """

    terms: tuple[Term, ...] = field(default_factory=lambda: DistillSettings.of().terms)
    teacher_weights: tuple[float, ...] = ()
    shared_vocab: int | None = None

    def __post_init__(self) -> None:
        _check_tuple("terms", self.terms)
        wrong = [term for term in self.terms if type(term) not in _CLASSES]
        if wrong or not self.terms:
            raise ConfigError(f"terms is {self.terms!r}", remedy="Give a list of one term or more")
        _check_tuple("teacher_weights", self.teacher_weights)
        for weight in self.teacher_weights:
            in_range("teacher_weights", weight, 1e-6, 1e6)
        if self.shared_vocab is not None:
            in_range("shared_vocab", self.shared_vocab, 1, LIMITS.vocab_size, whole=True)
        self._check_never_nothing()

    def _check_never_nothing(self) -> None:
        # Weights are straight lines between these times, so what is above 0 at all is above
        # 0 between.
        turns = sorted({0.0, 1.0, *(t.until for t in self.terms if t.until < 1.0)})
        times = [0.0, *turns, *((a + b) / 2 for a, b in itertools.pairwise(turns))]
        for share in times:
            if share < 1.0 and sum(t.weight_at(share) for t in self.terms) <= 0.0:
                raise ConfigError(
                    f"no term has a weight when {share:.0%} of the steps are done",
                    where="terms",
                    remedy="Let one term be constant, or overlap those that fall and rise",
                )

    @classmethod
    def of(
        cls,
        loss: Divergence = Divergence.FORWARD_KL,
        *,
        temperature: float = TEMPERATURE,
        alpha: float = ALPHA,
        features: LayerMap | None = None,
        shared_vocab: int | None = None,
    ) -> Self:
        """Returns alpha parts of `loss` to 1 - alpha of the text, and early features if asked.

        Features are hidden states, normalised, whose weight falls to 0 in the first half of
        the run. Raises ConfigError for a value out of range.
        """
        in_range("alpha", alpha, 0.0, 1.0)
        response = ResponseTerm(loss, temperature, weight=alpha)
        terms: tuple[Term, ...] = (response, TextTerm(weight=1.0 - alpha))
        if features is not None:
            terms += (
                FeatureTerm(Feature.HIDDEN, features, schedule=Schedule.FALL, normalise=True),
            )
        return cls(terms, shared_vocab=shared_vocab)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_json` gives back equal settings."""
        return {
            "terms": [{"kind": str(t.kind), **settings_to_json(t)} for t in self.terms],
            "teacher_weights": list(self.teacher_weights),
            "shared_vocab": self.shared_vocab,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the settings in `values`. Raises ConfigError for unknown or wrong ones."""
        given = dict(values)
        terms = given.pop("terms", None)
        if terms is not None:
            if not isinstance(terms, list | tuple):
                raise ConfigError(f"terms is {terms!r}", remedy="Give a list of terms")
            given["terms"] = tuple(term_from_json(term) for term in terms)
        return settings_from_json(cls, given)


_CLASSES: tuple[type[Term], ...] = (ResponseTerm, TextTerm, FeatureTerm, RelationTerm)
_KINDS: dict[str, type[Term]] = {
    **dict.fromkeys(map(str, Divergence), ResponseTerm),
    TextTerm.kind: TextTerm,
    **dict.fromkeys(map(str, Feature), FeatureTerm),
    **dict.fromkeys(map(str, Relation), RelationTerm),
}


def term_class(kind: object) -> type[Term]:
    """Returns the settings class of the term called `kind`. Raises ConfigError for none such."""
    found = _KINDS.get(kind) if isinstance(kind, str) else None
    if found is None:
        raise ConfigError(
            f"no term is called {kind!r}", where="terms", remedy=f"Known are {', '.join(_KINDS)}"
        )
    return found


def term_from_json(values: object) -> Term:
    """Returns the term that `DistillSettings.to_json` wrote. Raises ConfigError for others."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"a term is {values!r}", remedy="Give a table with kind and weight")
    kind = term_class(values.get("kind"))
    rest = {k: v for k, v in values.items() if k != "kind" or kind is not TextTerm}
    return settings_from_json(kind, rest)


def _check_term(term: Weighted) -> None:
    """Raises ConfigError for what every term has."""
    in_range("weight", term.weight, 0.0, 1e6)
    in_range("until", term.until, 1e-6, 1.0)
    if type(term.normalise) is not bool:
        raise ConfigError(f"normalise is {term.normalise!r}", remedy="Give true or false")
    enums: dict[str, type[StrEnum]] = {"schedule": Schedule, "layers": LayerMap, "of": Points}
    kinds = {ResponseTerm: Divergence, FeatureTerm: Feature, RelationTerm: Relation}
    enums |= {"kind": kinds[type(term)]} if type(term) in kinds else {}
    for name, enum in enums.items():
        value = getattr(term, name, None)
        if hasattr(term, name) and not isinstance(value, enum):
            raise ConfigError(f"{name} is {value!r}", remedy=f"Known are {', '.join(enum)}")


def _check_tuple(name: str, value: object) -> None:
    if not isinstance(value, tuple):
        raise ConfigError(f"{name} is {value!r}", remedy="Give a list")


def _unused_unless(name: str, used: bool, by: StrEnum) -> None:
    if not used:
        raise ConfigError(f"{by} has no {name}", where="terms", remedy=f"Leave {name} out")
