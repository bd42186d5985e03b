"""Features, rules, classifier, confidence: what they tell apart, and that they repeat."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from miudo.data.pack import hold_out
from miudo.errors import ConfigError, DataError, MissingError, ModelFileError
from miudo.records import Record
from miudo.route.complexity import CLASSIFIER_FILE, read_classifier, scaled, write_classifier
from miudo.route.confidence import confidence
from miudo.route.features import COUNTED, bucket, features, grams
from miudo.route.fitting import FitSettings, fit_classifier
from miudo.route.keywords import keyword_complexity

EASY = ("please", "show", "my", "balance", "card", "now", "thanks", "hello")
HARD = ("prove", "integral", "theorem", "derive", "matrix", "converges")


def corpus(n: int, seed: int) -> tuple[list[str], list[bool]]:
    rng = np.random.default_rng(seed)
    prompts, wrong = [], []
    for i in range(n):
        hard = bool(rng.random() < 0.4)
        words = list(rng.choice(EASY, 5)) + list(rng.choice(HARD if hard else EASY, 2))
        rng.shuffle(words)
        prompts.append(" ".join([*words, str(i)]))
        wrong.append(hard)
    return prompts, wrong


def test_features_are_of_length_one_sorted_and_the_same_every_time() -> None:
    row, again = features("How do I top up my card?", 12), features("How do I top up my card?", 12)
    assert np.array_equal(row.indices, again.indices)
    assert np.array_equal(row.values, again.values)
    assert math.isclose(float((row.values**2).sum()), 1.0)
    assert (np.diff(row.indices) > 0).all()
    assert row.indices.max() < 1 << 12
    assert len(row.counted) == len(COUNTED)


def test_where_a_gram_is_counted_is_fixed_for_all_time() -> None:
    """A stored classifier would otherwise read other words on another machine."""
    assert bucket("card", 12) == 0x8D3
    assert grams("Pay 50 to Ann, 50!")["#"] == 2
    assert grams("Pay 50 to Ann")["to ann"] == 1


@pytest.mark.parametrize("text", ["", " \n", "\ud800", "???", "é" * 100_000, "\x00"])
def test_any_text_has_finite_features(text: str) -> None:
    row = features(text, 8)
    assert np.isfinite(row.counted).all()
    assert np.isfinite(row.values).all()


def test_rules_fire_on_what_they_name() -> None:
    easy, hard = keyword_complexity("my card"), keyword_complexity("Explain why 2 + 2 = 4, if so")
    assert 0.0 <= easy.value < hard.value <= 1.0
    assert {"reasons", "conditions", "numbers"} <= {name for name, _ in hard.signals}
    assert keyword_complexity("why compare? calculate code, write if 1 2 " * 50).value == 1.0


def test_the_classifier_learns_what_makes_the_model_wrong() -> None:
    fitted = fit_classifier(*corpus(400, 0), FitSettings(bits=10))
    assert fitted.log_loss < fitted.guess_loss / 2
    assert fitted.ranked > 0.95
    tell = fitted.classifier.complexity
    assert tell("derive the integral theorem now 7").value > 0.7
    assert tell("show my balance please card 7").value < 0.3
    signals = dict(tell("prove my card now thanks hello 7").signals)
    assert signals["'prove'"] == max(signals.values()) > 0


def test_a_prompt_like_no_example_is_no_wild_guess() -> None:
    tell = fit_classifier(*corpus(400, 0), FitSettings(bits=10)).classifier.complexity
    far, further = (tell("card " * n + "!?.").value for n in (3000, 12_000))
    assert math.isclose(far, further, abs_tol=1e-3)


def test_labels_by_lot_teach_nothing() -> None:
    """The negative control: held-out figures must not flatter."""
    prompts, wrong = corpus(400, 1)
    np.random.default_rng(2).shuffle(wrong)
    fitted = fit_classifier(prompts, wrong, FitSettings(bits=10))
    assert fitted.log_loss > fitted.guess_loss * 0.95
    assert abs(fitted.ranked - 0.5) < 0.2


def test_training_repeats_bit_for_bit() -> None:
    first, again = (fit_classifier(*corpus(200, 3), FitSettings(bits=8)) for _ in range(2))
    assert np.array_equal(first.classifier.hashed, again.classifier.hashed)
    assert first.classifier.bias == again.classifier.bias
    assert first.penalty == again.penalty


def test_the_minimum_is_scikit_learns() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    prompts, wrong = corpus(200, 4)
    settings = FitSettings(bits=8, penalties=(1e-2,), steps=4000)
    ours = fit_classifier(prompts, wrong, settings).classifier
    rows = [features(p, 8) for p in prompts]
    dense = np.zeros((len(rows), (1 << 8) + len(COUNTED)))
    for i, row in enumerate(rows):
        dense[i, row.indices] = row.values
        within = scaled(row.counted, ours.mean, ours.spread)
        dense[i, 1 << 8 :] = within / math.sqrt(len(COUNTED))
    theirs = linear.LogisticRegression(C=1 / (1e-2 * len(rows)), tol=1e-10, max_iter=10_000)
    theirs.fit(dense, wrong)
    expected = theirs.decision_function(dense)
    assert np.allclose([ours.logit(row) for row in rows], expected, atol=1e-3)


def test_prompts_that_were_chosen_by_rank_can_be_parted_again() -> None:
    prompts, wrong = corpus(600, 6)
    kept = [i for i, prompt in enumerate(prompts) if hold_out(prompt, 0) >= 0.5]
    fitted = fit_classifier([prompts[i] for i in kept], [wrong[i] for i in kept], FitSettings())
    assert fitted.log_loss < fitted.guess_loss


@pytest.mark.parametrize("wrong", [[True] * 60, [False] * 60])
def test_nothing_can_be_learned_of_one_kind_alone(wrong: list[bool]) -> None:
    with pytest.raises(DataError, match="all right or all wrong"):
        fit_classifier([f"prompt {i}" for i in range(60)], wrong, FitSettings(bits=8))


@pytest.mark.parametrize("wrong", [{"bits": 3}, {"penalties": ()}, {"steps": 0}, {"held_out": 1.0}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        FitSettings(**wrong)  # type: ignore[arg-type]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    made = fit_classifier(*corpus(200, 5), FitSettings(bits=8)).classifier
    write_classifier(tmp_path / "router", made, Record("route train", "router"))
    return tmp_path / "router"


def test_a_stored_classifier_says_the_same(stored: Path) -> None:
    made = fit_classifier(*corpus(200, 5), FitSettings(bits=8)).classifier
    read = read_classifier(stored)
    for text in ("derive the integral", "show my card", ""):
        assert math.isclose(read.complexity(text).value, made.complexity(text).value, abs_tol=1e-4)
    record = Record.read(stored)
    assert record is not None
    assert set(record.outputs) == {CLASSIFIER_FILE}


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 9}, {"bits": 0}, {"bits": 60}, {"bits": True}, {"bias": "x"}, {"mean": []},
        {"spread": [0.0] * 10}, {"hashed": {"999": 1.0}}, {"hashed": {"-1": 1.0}},
        {"hashed": {"1": "x"}}, {"hashed": {"1": 1e400}}, {"hashed": []}, {"counted": {}},
    ],
)  # fmt: skip
def test_damaged_classifiers_are_refused(stored: Path, change: dict[str, object]) -> None:
    path = stored / CLASSIFIER_FILE
    values = json.loads(path.read_text()) | change
    path.write_text(json.dumps(values))
    (stored / "record.json").unlink()
    with pytest.raises(ModelFileError):
        read_classifier(stored)


def test_a_classifier_that_is_not_its_records_is_refused(stored: Path) -> None:
    path = stored / CLASSIFIER_FILE
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"bias": values["bias"] + 1.0}))
    with pytest.raises(ModelFileError, match="record"):
        read_classifier(stored)


def test_no_classifier_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        read_classifier(tmp_path)


def test_confidence_of_an_answer() -> None:
    first, second = (math.log(0.9), math.log(0.05)), (math.log(0.4), math.log(0.35))
    sure = confidence([first[0], second[0]], [first, second])
    assert math.isclose(sure.mean, 0.6)
    assert math.isclose(sure.min, 0.4)
    assert math.isclose(sure.by("margin"), 0.05)
    assert confidence([]).mean == 0.0
    with pytest.raises(ValueError, match="margin"):
        confidence([-0.1]).by("margin")
