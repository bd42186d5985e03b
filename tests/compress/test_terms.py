"""Settings of distillation: what is taken, refused, scheduled, and written to JSON and TOML."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from miudo.cli.shrinking import _learned
from miudo.compress.distill.divergence import Divergence
from miudo.compress.distill.terms import (
    DistillSettings,
    Feature,
    FeatureTerm,
    LayerMap,
    Points,
    Relation,
    RelationTerm,
    ResponseTerm,
    Schedule,
    TextTerm,
)
from miudo.errors import ConfigError, MiudoError, UsageError

EVERYTHING = DistillSettings(
    (
        ResponseTerm(Divergence.JENSEN_SHANNON, 1.5, 0.3, weight=0.6),
        TextTerm(weight=0.2, schedule=Schedule.RISE, until=0.25),
        FeatureTerm(Feature.HIDDEN, schedule=Schedule.FALL, normalise=True),
        FeatureTerm(Feature.ATTENTION, LayerMap.LAST, last=2, rows=1),
        FeatureTerm(Feature.COSINE, taught=(1, 3), teacher=1),
        RelationTerm(Relation.ANGLE, 0, -2, points=24, of=Points.ROWS, weight=25.0),
        RelationTerm(Relation.MINILM_V2, heads=8),
    ),
    teacher_weights=(1.0, 2.0),
    shared_vocab=500,
)
RECIPE = """
shared_vocab = 500
teacher_weights = [1, 2.0]

[[terms]]
kind = "jensen-shannon"
temperature = 1.5
mix = 0.3
weight = 0.6

[[terms]]
kind = "cross-entropy"
weight = 0.2
schedule = "rise"
until = 0.25

[[terms]]
kind = "hidden"
schedule = "fall"
normalise = true

[[terms]]
kind = "attention"
layers = "last"
last = 2
rows = 1

[[terms]]
kind = "cosine"
taught = [1, 3]
teacher = 1

[[terms]]
kind = "angle"
student_layer = 0
teacher_layer = -2
points = 24
of = "rows"
weight = 25

[[terms]]
kind = "minilm-v2"
heads = 8
"""


def test_settings_survive_json() -> None:
    for settings in (EVERYTHING, DistillSettings(), DistillSettings.of(features=LayerMap.LAST)):
        plain = json.loads(json.dumps(settings.to_json(), allow_nan=False))
        assert DistillSettings.from_json(plain) == settings


def test_settings_are_read_from_toml() -> None:
    extra = tomllib.loads(RECIPE)
    assert _learned(extra, None) == EVERYTHING
    assert extra == {}  # nothing is left that another settings object would refuse


def test_flags_are_the_simple_case_and_stand_against_terms() -> None:
    assert _learned({}, None) == DistillSettings() == DistillSettings.of()
    flags = {"loss": "reverse-kl", "temperature": 1.0, "alpha": 0.75, "features": "uniform"}
    assert _learned({}, 400, **flags).terms == (
        ResponseTerm(Divergence.REVERSE_KL, weight=0.75),
        TextTerm(weight=0.25),
        FeatureTerm(schedule=Schedule.FALL, normalise=True),
    )
    assert _learned({}, 400, **flags).shared_vocab == 400
    with pytest.raises(UsageError, match="--loss"):
        _learned(tomllib.loads(RECIPE), None, loss="reverse-kl", alpha=None)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"kind": "no-such"}, r"no term is called 'no-such'.*forward-kl.*minilm-v2"),
        ({"weight": 1}, "no term is called None"),
        ({"kind": "hidden", "temperature": 2}, "temperature"),
        ({"kind": "cross-entropy", "mix": 0.1}, "mix"),
        ({"kind": "gram", "weight": "much"}, "weight"),
        ({"kind": "forward-kl", "normalise": 1}, "normalise"),
        ("forward-kl", "a table of settings"),
    ],
)
def test_wrong_tables_are_refused_by_number(table: Any, told: str) -> None:
    good = {"kind": "cross-entropy"}
    with pytest.raises(MiudoError, match=told):
        _learned({"terms": [good, table]}, None)
    with pytest.raises(ConfigError):
        DistillSettings.from_json({"terms": [good, table]})


def test_the_published_recipe_is_read() -> None:
    page = Path(__file__).parents[2] / "docs" / "distillation.md"
    recipes = page.read_text(encoding="utf-8").split("```toml\n")[1:]
    assert recipes
    for recipe in recipes:
        assert _learned(tomllib.loads(recipe.split("```")[0]), None).terms


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ResponseTerm(temperature=0.0), "temperature"),
        (lambda: ResponseTerm(weight=-1.0), "weight"),
        (lambda: ResponseTerm(weight=float("nan")), "weight"),
        (lambda: ResponseTerm(mix=0.5), "forward-kl has no mix"),
        (lambda: ResponseTerm(Divergence.SKEW_KL, mix=1.0), "mix"),
        (lambda: ResponseTerm(until=0.0), "until"),
        (lambda: ResponseTerm("forward-kl"), "kind"),  # type: ignore[arg-type]
        (lambda: ResponseTerm(schedule="fall"), "schedule"),  # type: ignore[arg-type]
        (lambda: FeatureTerm(taught=[1]), "taught"),  # type: ignore[arg-type]
        (lambda: FeatureTerm(last=2), "last"),
        (lambda: RelationTerm(Relation.ANGLE, points=64), "points"),
        (lambda: RelationTerm(points=3), "points"),
        (lambda: RelationTerm(heads=2), "distance has no heads"),
        (lambda: RelationTerm(Relation.MINILM_V2, points=8), "minilm-v2 has no points"),
        (lambda: DistillSettings(()), "terms"),
        (lambda: DistillSettings((1,)), "terms"),  # type: ignore[arg-type]
        (lambda: DistillSettings(teacher_weights=(0.0,)), "teacher_weights"),
        (lambda: DistillSettings(shared_vocab=0), "shared_vocab"),
        (lambda: DistillSettings.of(alpha=1.5), "alpha"),
    ],
)
def test_values_out_of_range_are_refused(make: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        make()


def test_schedules_are_straight_lines_of_the_share_of_steps() -> None:
    fall = TextTerm(weight=2.0, schedule=Schedule.FALL, until=0.5)
    assert [fall.weight_at(x) for x in (0.0, 0.25, 0.5, 0.9)] == [2.0, 1.0, 0.0, 0.0]
    rise = TextTerm(weight=2.0, schedule=Schedule.RISE, until=0.5)
    assert [rise.weight_at(x) for x in (0.0, 0.25, 0.5, 0.9)] == [0.0, 1.0, 2.0, 2.0]
    assert {TextTerm(weight=2.0).weight_at(x) for x in (0.0, 0.5, 0.99)} == {2.0}


@pytest.mark.parametrize(
    ("terms", "when"),
    [
        ((TextTerm(schedule=Schedule.FALL),), "50%"),
        ((TextTerm(schedule=Schedule.RISE),), "0%"),
        ((TextTerm(weight=0.0),), "0%"),
    ],
)
def test_a_run_that_would_learn_nothing_at_a_time_is_refused(terms: Any, when: str) -> None:
    with pytest.raises(ConfigError, match=when):
        DistillSettings(terms)


def test_features_first_then_logits_is_allowed() -> None:
    DistillSettings(
        (ResponseTerm(schedule=Schedule.RISE), FeatureTerm(schedule=Schedule.FALL, until=0.7))
    )
