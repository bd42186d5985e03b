"""Scores on a model whose distributions are known, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from miudo.config import ModelConfig
from miudo.engine.fake import FakeEngine, follow
from miudo.errors import CheckFailedError, DataError
from miudo.evaluate.harness import SampleResult, TaskScore, run_tasks, write_samples
from miudo.evaluate.overlap import Overlap
from miudo.evaluate.prepared import prepare_tasks
from miudo.evaluate.task_table import task_notes, task_table
from miudo.evaluate.tasks.task import Sample, Source, Task, TaskData, TaskSettings
from miudo.protocol import FloatArray, Tokenizer
from miudo.report import text_table

NOWHERE = Source(())
# Probabilities pass through float32 logits on their way.
TOLERANCE = 1e-5


class ByteTokenizer:
    """Every byte is an id, one more than its value; 0 starts a text."""

    vocab_size = 257
    fingerprint = "bytes"

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        return [byte + 1 for byte in text.encode()]


def unigram(**probabilities: float) -> FloatArray:
    """Logits of a model that looks at nothing: named letters, `space`, the rest alike."""
    named = {" " if k == "space" else k: v for k, v in probabilities.items()}
    values = np.full(257, (1 - sum(named.values())) / (257 - len(named)))
    for letter, probability in named.items():
        values[ord(letter) + 1] = probability
    return np.log(values).astype(np.float32)


# A space costs 3 bits, an a 1 bit, a b 2 bits, a c 4 bits.
BITS = {"space": 1 / 8, "a": 1 / 2, "b": 1 / 4, "c": 1 / 16}
BYTES: Tokenizer = ByteTokenizer()  # type: ignore[assignment]


def make_model(max_positions: int = 512, **probabilities: float) -> tuple[FakeEngine, Tokenizer]:
    logits = unigram(**(probabilities or BITS))
    config = ModelConfig.uniform(
        vocab_size=257, d_model=8, n_layers=1, n_heads=1, d_ff=8, max_positions=max_positions,
        bos_id=0,
    )  # fmt: skip
    return FakeEngine(config, lambda ids: logits), BYTES


def sample(*choices: str, gold: int = 0, prompt: str = "q", group: str = "") -> Sample:
    return Sample(f"{prompt}|{choices[0]}", prompt, choices, gold, text="", group=group)


def task(samples: Sequence[Sample], pool: Sequence[Sample] = (), **values: object) -> Task:
    data = TaskData(samples, pool, files=("f",))
    return Task("t", lambda source, settings: data, **values)  # type: ignore[arg-type]


def run(
    what: Task,
    max_positions: int = 512,
    model: tuple[FakeEngine, Tokenizer] | None = None,
    **settings: int,
) -> tuple[TaskScore, list[SampleResult]]:
    model = model or make_model(max_positions)
    prepared = prepare_tasks([what], NOWHERE, model, TaskSettings(**settings))  # type: ignore[arg-type]
    (found,) = run_tasks(prepared, model)
    assert model[0].opened == model[0].closed
    return found


def test_log_probabilities_are_those_worked_out() -> None:
    _, (result,) = run(task([sample("ab", "aaaa", "c")]))
    assert result.logprobs == pytest.approx(
        [-6 * math.log(2), -7 * math.log(2), -7 * math.log(2)], abs=TOLERANCE
    )


def test_division_by_bytes_changes_the_answer() -> None:
    # "ab": 6 bits, 3 a byte. "aaaa": 7 bits, 1.75 a byte.
    score, (result,) = run(task([sample("ab", "aaaa", gold=1)]))
    assert (result.chosen, result.chosen_plain) == (1, 0)
    assert (score.metric, score.score.right, score.acc.right) == ("acc_norm", 1, 0)
    plain, (result,) = run(task([sample("ab", "aaaa", gold=1)], metric="acc"))
    assert (result.chosen, plain.score.right, plain.acc.right) == (0, 0, 0)


def test_bytes_are_bytes_of_utf_8() -> None:
    # 1 / 16 is left for 253 ids: e acute is two bytes of some 12 bits each, and counts twice.
    _, (result,) = run(task([sample("é", "cc")]))
    per_byte = [
        -value / size / math.log(2) for value, size in zip(result.logprobs, (2, 2), strict=True)
    ]
    assert per_byte[1] == pytest.approx((3 + 8) / 2, abs=TOLERANCE)
    assert per_byte[0] == pytest.approx((3 + 2 * math.log2(16 * 253)) / 2, abs=TOLERANCE)


@pytest.mark.parametrize("gold", [0, 1])
def test_a_tie_for_the_highest_is_wrong_for_both(gold: int) -> None:
    score, (result,) = run(task([sample("ab", "ba", "c", gold=gold)]))
    assert result.logprobs[0] == result.logprobs[1]
    assert (result.chosen, result.tied, result.right) == (None, True, False)
    assert (score.ties, score.score.right) == (1, 0)


def test_a_tie_below_the_highest_is_none() -> None:
    score, _ = run(task([sample("a", "cc", "cc")]))
    assert (score.ties, score.score.right) == (0, 1)


def test_pairs_stand_alone_and_have_a_row_a_group() -> None:
    samples = [
        sample("a", "b", prompt="", group="x"),
        sample("b", "a", prompt="", group="x"),
        sample("ab", "ba", prompt="", group="x"),  # a tie
        sample("a", "c", prompt="", group="y"),
    ]
    score, results = run(task(samples, metric="acc", kind="pair"), shots=3)
    assert results[0].logprobs == pytest.approx([-math.log(2), -2 * math.log(2)], abs=TOLERANCE)
    assert (score.score.right, score.score.samples, score.ties, score.shots) == (2, 4, 1, 0)
    assert {name: group.value for name, group in score.groups.items()} == {"x": 1 / 3, "y": 1.0}
    assert score.mean_of_groups == pytest.approx(2 / 3)
    assert score.chance == 0.5
    shown = text_table(task_table([score])).splitlines()
    assert [line.split()[0] for line in shown[2:]] == ["t", "mean", "x", "y"]


def test_chance_is_the_mean_over_samples() -> None:
    score, _ = run(task([sample("a", "b"), sample("a", "b", "c", "d")]))
    assert score.chance == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_a_last_word_is_right_if_the_model_would_write_it() -> None:
    model = make_model()[0]
    script = [*"q a b", *" no"]
    engine = FakeEngine(model.config, follow([ord(c) + 1 for c in script], 257))
    words = [sample("no", prompt="q a b"), sample("nu", prompt="q a b")]
    what = task(words, metric="acc", kind="greedy")
    score, results = run(what, model=(engine, BYTES))
    assert [result.right for result in results] == [True, False]
    assert (score.chance, score.score.right, score.ties) == (None, 1, 0)
    # Three letters, of which the last one of "nu" has a logit 20 below the highest.
    each = math.log1p(256 * math.exp(-20))
    assert score.perplexity == pytest.approx(math.exp((6 * each + 20) / 2), rel=1e-5)
    assert "perplexity of the last word" in task_notes([score])[0]


def test_examples_come_before_the_question_and_never_hold_it() -> None:
    pool = [sample(f"a{i}", "x", prompt=f"p{i}") for i in range(6)]
    asked = [sample("a", "b", prompt="p2"), sample("a", "b", prompt="p9")]
    _, results = run(task(asked, pool), shots=3, seed=4)
    for result in results:
        *shown, question = result.prompt.split("\n\n")
        assert question == result.sample.prompt
        assert len(set(shown)) == len(shown) == 3
        assert set(shown) <= {f"p{i} a{i}" for i in range(6)} - {f"{question} a2"}
    again = run(task(asked, pool), shots=3, seed=4)[1]
    other = run(task(asked, pool), shots=3, seed=5)[1]
    assert [r.prompt for r in again] == [r.prompt for r in results]
    assert [r.prompt for r in other] != [r.prompt for r in results]
    # All but itself can be asked for, one more can't.
    *shown, _ = run(task(asked[:1], pool), shots=5)[1][0].prompt.split("\n\n")
    assert sorted(shown) == [f"p{i} a{i}" for i in (0, 1, 3, 4, 5)]
    with pytest.raises(DataError, match="5 examples are there for it, 6 are asked for"):
        run(task(asked[:1], pool), shots=6)


def test_a_subject_has_its_own_examples_under_its_header() -> None:
    def of(subject: str, prompt: str) -> Sample:
        return Sample(
            prompt, prompt, ("a", "b"), 0, "", group=subject, header=f"About {subject}.\n"
        )

    samples = [of("x", "x1"), of("y", "y1"), of("x", "x2"), of("y", "y2")]
    _, results = run(task(samples, samples), shots=1)
    assert [result.prompt for result in results] == [
        "About x.\nx2 a\n\nx1", "About y.\ny2 a\n\ny1", "About x.\nx1 a\n\nx2",
        "About y.\ny1 a\n\ny2",
    ]  # fmt: skip


def test_a_limit_draws_from_each_group_by_the_seed() -> None:
    samples = [sample("a", "b", prompt=f"{g}{i}", group=g) for g in "xy" for i in range(9)]
    drawn = {
        seed: [r.sample.prompt for r in run(task(samples), limit=3, seed=seed)[1]]
        for seed in range(3)
    }
    for prompts in drawn.values():
        assert [prompt[0] for prompt in prompts] == list("xxxyyy")
        assert prompts == sorted(prompts)
    assert len({tuple(prompts) for prompts in drawn.values()}) > 1


def test_prompts_that_are_too_long_are_cut_and_counted() -> None:
    samples = [sample("a", "bb", prompt="q" * 20), sample("a", "bb", prompt="q")]
    score, results = run(task(samples), max_positions=8)
    # Start, 20, a space and two letters, of which the last is not taken in: 23 ids for 8.
    assert [result.cut for result in results] == [15, 0]
    assert score.cut == 1
    assert any("lost their beginning" in note for note in task_notes([score]))


def test_a_value_that_is_no_number_is_refused() -> None:
    engine, tokenizer = make_model()
    engine._logits_of = lambda ids: np.full(257, np.nan, np.float32)
    with pytest.raises(CheckFailedError, match=r"t, q\|a: the log-probability of choice 0 is nan"):
        run(task([sample("a", "b")]), model=(engine, tokenizer))


def test_what_the_model_cannot_be_asked_is_counted() -> None:
    samples = [sample("a", "b"), sample("a", "b" * 8), sample("a", "b")]
    score, results = run(task(samples), max_positions=4)
    assert len(results) == score.score.samples == 2
    assert score.skipped == {"a choice is longer than the model's 4 positions": 1}
    assert "t: 1 left out (a choice is longer than" in task_notes([score])[0]


def test_a_task_without_anything_to_score_says_what_was_left_out() -> None:
    with pytest.raises(DataError, match=r"nothing to score$"):
        run(task([]))
    data = TaskData([sample("aaaaaaaa", "b")], skipped={"needs a picture": 2, "else": 0})
    what = Task("t", lambda source, settings: data)
    with pytest.raises(DataError) as caught:
        run(what, max_positions=4)
    assert str(caught.value) == (
        "there is nothing to score, 2 left out (needs a picture), "
        "1 left out (a choice is longer than the model's 4 positions)"
    )


def test_an_adapter_is_asked_for_in_every_step(adapters_asked: list[str | None]) -> None:
    model = make_model()
    prepared = prepare_tasks([task([sample("ab", "ba")])], NOWHERE, model, TaskSettings())
    run_tasks(prepared, model, adapter="mine")
    assert adapters_asked == ["mine"] * 3


def test_overlap_stands_beside_each_score(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(60)]
    texts = [" ".join(words[i : i + 14]) for i in (0, 20, 40)] + ["short"]
    samples = [Sample(str(i), "q", ("a", "b"), 0, text) for i, text in enumerate(texts)]
    told: list[int] = []
    model = make_model()
    prepared = prepare_tasks(
        [task(samples[:2]), task(samples[2:])],
        NOWHERE,
        model,
        TaskSettings(),
        against=[" ".join(words[:50])],
    )
    assert model[0].steps == 0
    first, second = run_tasks(prepared, model, progress=told.append)
    assert told == [1, 2, 3, 4]
    assert first[0].overlap == Overlap(2, 2, 0, 1.0)
    assert second[0].overlap == Overlap(0, 1, 1, 0.0)
    assert [result.overlap for result in second[1]] == [False, None]
    assert "1 samples of fewer than 8 words" in task_notes([second[0]])[0]
    out = tmp_path / "samples.jsonl"
    write_samples(out, [*first[1], *second[1]])
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(records) == 4
    assert records[3]["overlap"] is None
    assert records[0] | {"logprobs": None} == {
        "task": "t", "id": "0", "group": "", "prompt": "q", "choices": ["a", "b"],
        "logprobs": None, "chosen": 0, "gold": 0, "right": True, "right_plain": True,
        "tied": False, "cut_tokens": 0, "overlap": True,
    }  # fmt: skip
    assert records[0]["logprobs"] == list(first[1][0].logprobs)
