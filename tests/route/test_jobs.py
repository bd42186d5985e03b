"""The whole way on a small model: observe, train, calibrate, and files that lie."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from miudo.errors import DataError, UsageError
from miudo.evaluate.loading import load_model
from miudo.hub.resolve import model_path
from miudo.protocol import Message, TextEvent
from miudo.records import Record
from miudo.route import jobs
from miudo.route.confidence import Confidence
from miudo.route.fitting import FitSettings
from miudo.route.observing import (
    Answered,
    Example,
    Observation,
    ask_local,
    ask_remote,
    is_right,
    read_examples,
    read_observations,
    write_observations,
)
from miudo.route.targets import RouteTable, Target

TABLE = RouteTable((Target("small", "s"), Target("large", "l")), complexity="keywords")


def observation(i: int, *, small: bool, large: bool, sure: float) -> Observation:
    told = Confidence(sure, sure / 2, sure / 3)
    answered = {
        "small": Answered("a", small, told, 5, 2, 0.01),
        "large": Answered("b", large, None, 5, 2, 0.04),
    }
    words = "explain why the theorem" if not small else "show my card"
    return Observation(Example(f"{words} {i}", "a"), answered)


@pytest.fixture
def observed(tmp_path: Path) -> Path:
    path = tmp_path / "observed.jsonl"
    rows = [
        observation(i, small=i % 3 != 0, large=i % 5 != 0, sure=0.3 if i % 3 == 0 else 0.8)
        for i in range(120)
    ]
    write_observations(path, rows)
    assert read_observations(path) == rows
    return path


class Echo:
    def generate(self, messages: list[Message], *, max_tokens: int) -> Iterator[TextEvent]:
        yield TextEvent(messages[-1].content.upper())
        yield TextEvent("", "stop", {"prompt_tokens": 3, "completion_tokens": max_tokens})


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("Card arrival.", "card  arrival", True),
        (" 42 ", "42", True),
        ("card", "card arrival", False),
        ("", "x", False),
        ("4.2", "42", False),
    ],
)
def test_what_counts_as_right(text: str, answer: str, right: bool) -> None:
    assert is_right(text, answer) is right


def test_a_local_model_answers_the_same_twice_and_says_how_surely() -> None:
    loaded = load_model(model_path(None), threads=1)
    first, again = (ask_local(loaded, Example("Hello", "Hello"), 5) for _ in range(2))
    assert dataclasses.replace(first, seconds=0.0) == dataclasses.replace(again, seconds=0.0)
    assert first.confidence is not None
    assert first.confidence.margin is not None
    assert 0.0 < first.confidence.min <= first.confidence.mean <= 1.0
    assert 0.0 <= first.confidence.margin <= 1.0
    assert 1 <= first.new_tokens <= 5
    assert first.right is False
    assert ask_local(loaded, Example("Hello"), 5).right is None


def test_a_remote_one_answers_without_confidence() -> None:
    one = ask_remote(Echo(), Example("hi", "HI"), 7)
    assert (one.text, one.right, one.confidence, one.new_tokens) == ("HI", True, None, 7)


def test_observations_train_a_classifier_with_a_record(observed: Path, tmp_path: Path) -> None:
    fitted = jobs.train(observed, "small", FitSettings(bits=8), tmp_path / "router")
    assert fitted.ranked > 0.9
    record = Record.read(tmp_path / "router")
    assert record is not None
    assert record.settings["target"] == "small"
    assert record.inputs[0].name == "observed.jsonl"
    assert {m.name for m in record.measurements} >= {"log_loss", "auroc"}
    table = dataclasses.replace(TABLE, complexity="router")
    tell = jobs.complexity_of(table, tmp_path)
    assert tell("explain why the theorem").value > 0.6 > 0.4 > tell("show my card").value


def test_what_nobody_gets_right_is_not_worth_passing_on(tmp_path: Path) -> None:
    rows = []
    for i in range(240):
        easy, hopeless = i % 3 == 0, i % 3 == 1
        made = observation(i, small=easy, large=not hopeless, sure=0.5)
        words = "show my card" if easy else "square the circle" if hopeless else "explain why"
        rows.append(dataclasses.replace(made, example=Example(f"{words} {i}", "a")))
    path = tmp_path / "observed.jsonl"
    write_observations(path, rows)
    chances = {}
    for beside in (None, "large"):
        out = tmp_path / f"router-{beside}"
        jobs.train(path, "small", FitSettings(bits=8), out, beside=beside)
        tell = jobs.complexity_of(dataclasses.replace(TABLE, complexity=out.name), tmp_path)
        chances[beside] = [tell(f"{w} 7").value for w in ("square the circle", "explain why")]
    assert min(chances[None]) > 0.6
    assert chances["large"][0] < 0.3 < 0.6 < chances["large"][1]


@pytest.mark.parametrize("signal", ["complexity", "confidence"])
@pytest.mark.parametrize("aim", [{"share": 0.4}, {"quality": 0.8}])
def test_a_threshold_does_in_a_table_what_it_did_on_the_examples(
    observed: Path, signal: str, aim: dict[str, float]
) -> None:
    made = jobs.calibrate(TABLE, observed.parent, observed, jobs.Aim(signal, "small", **aim))  # type: ignore[arg-type]
    target = Target("small", "s", **{made.setting: made.value})  # type: ignore[arg-type]
    passed = 0
    for each in read_observations(observed):
        sure = each.answered["small"].confidence
        assert sure is not None
        tell = jobs.complexity_of(TABLE, observed.parent)
        if target.skip_above is not None:
            passed += tell(each.example.prompt).value > target.skip_above
        else:
            assert target.accept_above is not None
            passed += sure.mean < target.accept_above
    assert passed == made.found.passed_on.right > 0
    assert made.found.quality is not None
    json.dumps(made.to_json())


def test_prompts_alone_are_enough_for_a_share_of_complexity(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"why {'x ' * i}"}) + "\n" for i in range(20)))
    made = jobs.calibrate(TABLE, tmp_path, path, jobs.Aim("complexity", "small", share=0.25))
    assert made.found.passed_on.right == 5
    assert made.found.quality is None
    for aim in (
        jobs.Aim("complexity", "small", quality=0.9),
        jobs.Aim("confidence", "small", share=0.5),
    ):
        with pytest.raises(DataError, match="example 1"):
            jobs.calibrate(TABLE, tmp_path, path, aim)


def test_aims_that_cannot_be(observed: Path) -> None:
    for wrong in ({}, {"share": 0.5, "quality": 0.5}, {"share": 1.5}, {"quality": -0.1}):
        with pytest.raises(UsageError):
            jobs.Aim("complexity", "small", **wrong)
    for target in ("large", "nobody"):
        with pytest.raises(UsageError, match="after it"):
            jobs.calibrate(TABLE, observed.parent, observed, jobs.Aim("complexity", target, 0.5))
    silent = dataclasses.replace(TABLE, complexity="none")
    with pytest.raises(UsageError, match="none"):
        jobs.calibrate(silent, observed.parent, observed, jobs.Aim("complexity", "small", 0.5))


GOOD = {"text": "a", "right": True, "confidence": None, "prompt_tokens": 1, "new_tokens": 1,
        "seconds": 0.1}  # fmt: skip


UNSURE = {"mean": 2, "min": "x"}


@pytest.mark.parametrize(
    "line",
    [
        "x", "[]", "{}", '{"prompt": ""}', '{"prompt": 5}', '{"prompt": "a", "answer": 5}',
        '{"prompt": "a", "odd": 1}', '{"prompt": "a", "answered": []}',
        '{"prompt": "a", "answered": {"s": {}}}',
        json.dumps({"prompt": "a", "answered": {"s": GOOD | {"right": "yes"}}}),
        json.dumps({"prompt": "a", "answered": {"s": GOOD | {"seconds": -1}}}),
        json.dumps({"prompt": "a", "answered": {"s": GOOD | {"confidence": {"mean": 1}}}}),
        json.dumps({"prompt": "a", "answered": {"s": GOOD | {"confidence": UNSURE}}}),
    ],
)  # fmt: skip
def test_lines_that_are_no_observation_are_refused_with_their_number(
    tmp_path: Path, line: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        read_observations(path)


def test_plain_examples_have_prompt_and_answer_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n\n{"prompt": "c"}\n')
    assert read_examples(path) == [Example("a", "b"), Example("c")]
    path.write_text('{"prompt": "a", "answered": {}}\n')
    with pytest.raises(DataError, match="answered"):
        read_examples(path)
