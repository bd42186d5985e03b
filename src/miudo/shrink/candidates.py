"""Ways from a teacher to a small file, as plain steps: shape, sparsity, learning, bits, order.

For: proposing candidates out of the methods that this build has, by their names in the catalogue.
Not for: judging them (`miudo.shrink.forecast`) or doing them (`miudo.shrink.making`).
Read next: `miudo.shrink.forecast`.

A candidate is a trunk, the steps up to the decoder that is to be stored, and a rounding step.
Candidates that share a trunk share its training, unless rounding is trained itself.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from miudo.compress.catalogue import METHODS, method_from_json
from miudo.compress.method import Method, Quantizer
from miudo.compress.prune.heads import HeadPruning
from miudo.config import ModelConfig
from miudo.errors import ConfigError

__all__ = [
    "LEARN",
    "NEAREST",
    "SPARSE",
    "STUDENT",
    "TRAINED",
    "Candidate",
    "Order",
    "Step",
    "absent",
    "ends_sparse",
    "propose",
]

LEARN = "learn"
"""A step of a trunk: the model learns from the teacher (`loss` is `teacher`) or the text alone."""

STUDENT = "student"
"""A step of a trunk: a model of a share `ratio` of the teacher's parameters, drawn at random."""

SPARSE = "sparse"
"""The catalogue's pruning to zeros, which learning keeps and only some types store."""

NEAREST = "nearest"
"""The catalogue's plainest rounding, which every other one is held against."""

TRAINED = "trained"
"""The catalogue's rounding that takes training: its steps count like those of learning."""


class Order(StrEnum):
    """In what order a model is cut, learns and is rounded."""

    CUT_ROUND = "cut-round"
    CUT_LEARN_ROUND = "cut-learn-round"
    CUT_LEARN_CUT_LEARN_ROUND = "cut-learn-cut-learn-round"
    STUDENT_LEARN_ROUND = "student-learn-round"
    STUDENT_LEARN_CUT_ROUND = "student-learn-cut-round"
    SPARSIFY_ROUND = "sparsify-round"
    CUT_SPARSIFY_LEARN_ROUND = "cut-sparsify-learn-round"
    CUT_TRAINED_ROUND = "cut-trained-round"
    CUT_LEARN_TRAINED_ROUND = "cut-learn-trained-round"


@dataclass(frozen=True, slots=True)
class Step:
    """LEARN, STUDENT, or a method of the catalogue; `settings` are JSON text, so steps hash."""

    method: str
    settings: str = "{}"

    @classmethod
    def of(cls, method: str, /, **settings: Any) -> Self:
        """Returns the step of these settings."""
        return cls(method, json.dumps(settings, sort_keys=True))

    @property
    def values(self) -> dict[str, Any]:
        """The settings."""
        found: dict[str, Any] = json.loads(self.settings)
        return found

    def build(self) -> Method:
        """Returns the catalogue's method. Raises ConfigError for a name that it has not."""
        return method_from_json({"method": self.method, "settings": self.values})

    def label(self) -> str:
        """Returns a short name: `depth-2`, `width-0.5`, `Q4_K`, `gptq-Q4_K`."""
        values = [str(v) for v in self.values.values()]
        if self.method == LEARN:
            return LEARN
        # Settings are part of folder names: no separators of paths or drives.
        values = values if self.method == NEAREST else [self.method, *values]
        return "-".join(values).replace(":", "of").replace("/", "-")

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {"method": self.method, "settings": self.values}


@dataclass(frozen=True, slots=True)
class Candidate:
    """`trunk` makes the decoder, `rounding` stores it."""

    order: Order
    trunk: tuple[Step, ...]
    rounding: Step

    @property
    def trunk_name(self) -> str:
        """Names the trunk, as its folder."""
        return "_".join(step.label() for step in self.trunk) or "whole"

    @property
    def name(self) -> str:
        """Names the candidate, as its file."""
        return f"{self.trunk_name}_{self.rounding.label()}"

    @property
    def group(self) -> str:
        """Names what is trained together: the trunk, or the candidate where rounding is trained."""
        return self.name if self.rounding.method == TRAINED else self.trunk_name

    @property
    def lessons(self) -> int:
        """How many of its steps take training, and share its steps alike."""
        return sum(step.method in (LEARN, TRAINED) for step in (*self.trunk, self.rounding))

    @property
    def uses(self) -> set[str]:
        """The catalogue's methods among its steps."""
        return {s.method for s in (*self.trunk, self.rounding)} - {LEARN, STUDENT}

    @property
    def learns(self) -> bool:
        """Whether it takes training."""
        return self.lessons > 0

    @property
    def dtype(self) -> str | None:
        """The type that its matrices are stored in, None where the rounding step chooses."""
        found = self.rounding.values.get("dtype")
        return None if found is None else str(found)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_json` gives back an equal candidate."""
        return {
            "name": self.name,
            "order": self.order.value,
            "trunk": [step.to_json() for step in self.trunk],
            "rounding": self.rounding.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the candidate that `to_json` wrote."""
        return cls(
            Order(values["order"]),
            tuple(Step.of(v["method"], **v["settings"]) for v in values["trunk"]),
            Step.of(values["rounding"]["method"], **values["rounding"]["settings"]),
        )


# What is tried, by the catalogue's names. A name that this build has not, or a setting that the
# method refuses (a type that it cannot round to), is left out; all else follows from these rows.
_ROUNDING = (NEAREST, "importance", "gptq", "awq", "learned")
"""By what they cost: where one takes too long, those after it are not measured."""

_DTYPES = ("Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "Q4_0", "IQ4_NL", "Q3_K", "Q2_K", "TQ2_0")
_CALIBRATED_DTYPES = ("Q4_K", "Q4_0", "Q3_K", "Q2_K")
"""More bits leave nothing to calibrate for."""

_TRAINED_DTYPES = ("Q4_0", "Q3_K", "Q2_K", "TQ2_0")
_SPARSIFYING = (Step.of(SPARSE, pattern="0.5"), Step.of(SPARSE, pattern="2:4"))
_KEEP_WIDTH = (1.0, 0.75, 0.5, 0.25)
_RARER_CUTS = (Step.of("heads", groups=0.5), Step.of("hidden", keep=0.75))
_STUDENTS = (0.5, 0.25)
_LEARN = Step.of(LEARN, loss="teacher")
_TRAINED_ORDERS = (Order.CUT_TRAINED_ROUND, Order.CUT_LEARN_TRAINED_ROUND)


def propose(
    config: ModelConfig, order: Order | None = None, methods: Collection[str] = ()
) -> list[Candidate]:
    """Returns all candidates for a teacher of shape `config`, of one `order` if it is given.

    With `methods` those made by these alone, beside learning and students. The teacher itself,
    rounded, is among them.
    """
    roundings = list(_roundings())
    trained = [s for s in (Step.of(TRAINED, dtype=t) for t in _TRAINED_DTYPES) if _is_there(s)]
    found: list[Candidate] = []
    for kind, trunk in dict.fromkeys(_trunks(config)):
        ends = trained if kind in _TRAINED_ORDERS else roundings
        found += [Candidate(kind, trunk, end) for end in ends]
    return [
        candidate
        for candidate in found
        if order in (None, candidate.order) and (not methods or candidate.uses <= set(methods))
    ]


def ends_sparse(steps: Iterable[Step], *, begins: bool) -> bool:
    """Returns whether a model has zeros to keep after `steps`, if it `begins` with some or not."""
    sparse = begins
    for step in steps:
        sparse = step.method == SPARSE or (sparse and step.method != STUDENT)
    return sparse


def absent() -> list[str]:
    """Returns the methods that would be tried and that this build has not."""
    names = [*_ROUNDING, TRAINED, *(step.method for step in _SPARSIFYING)]
    return [name for name in dict.fromkeys(names) if name not in METHODS]


def _roundings() -> Iterator[Step]:
    for name in _ROUNDING:
        for dtype in _DTYPES if name == NEAREST else _CALIBRATED_DTYPES:
            step = Step.of(name, dtype=dtype)
            if _is_there(step) and isinstance(step.build(), Quantizer):
                yield step


def _trunks(config: ModelConfig) -> Iterator[tuple[Order, tuple[Step, ...]]]:
    sparsifying = [step for step in _SPARSIFYING if _is_there(step)]
    for cuts in _cuts(config):
        yield Order.CUT_ROUND, cuts
        yield Order.CUT_TRAINED_ROUND, cuts
        # Narrow layers and zeros in them are two ways to the same end.
        for step in sparsifying if not any(step.method == "width" for step in cuts) else ():
            yield Order.CUT_SPARSIFY_LEARN_ROUND, (*cuts, step, _LEARN)
        if cuts:
            yield Order.CUT_LEARN_ROUND, (*cuts, _LEARN)
            yield Order.CUT_LEARN_TRAINED_ROUND, (*cuts, _LEARN)
        if len(cuts) > 1:
            first, *rest = cuts
            yield Order.CUT_LEARN_CUT_LEARN_ROUND, (first, _LEARN, *rest, _LEARN)
    for step in sparsifying:
        yield Order.SPARSIFY_ROUND, (step,)
    for ratio in _STUDENTS:
        student = (Step.of(STUDENT, ratio=ratio), _LEARN)
        yield Order.STUDENT_LEARN_ROUND, student
        yield Order.STUDENT_LEARN_CUT_ROUND, (*student, Step.of("width", keep=0.5))


def _cuts(config: ModelConfig) -> Iterator[tuple[Step, ...]]:
    """Yields depth and width in every combination, the whole model first; then what is rarer."""
    layers = config.n_layers
    for drop in sorted({0, 1, layers // 4, layers // 2} & set(range(layers))):
        for keep in _KEEP_WIDTH:
            depth = (Step.of("depth", drop=drop),) if drop else ()
            width = (Step.of("width", keep=keep),) if keep < 1.0 else ()
            yield (*depth, *width)
    for step in _RARER_CUTS:
        if _cuts_something(step, config):
            yield (step,)
            yield (step, Step.of("width", keep=0.5))


def _cuts_something(step: Step, config: ModelConfig) -> bool:
    """Whether a model of this shape has what `step` takes away."""
    method = step.build()
    if not isinstance(method, HeadPruning):
        return True
    try:
        counts = method.resolve(config)
    except ConfigError:
        return False
    return any(
        groups * heads < layer.n_heads
        for (groups, heads), layer in zip(counts, config.layers, strict=True)
    )


def _is_there(step: Step) -> bool:
    if step.method not in METHODS:
        return False
    try:
        step.build()
    except ConfigError:
        return False
    return True
