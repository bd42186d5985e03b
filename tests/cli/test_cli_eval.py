"""`miudo eval` on a scripted model: which flags go together, tables, JSON, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from miudo.cli.main import cli
from miudo.config import ModelConfig
from miudo.data.dedupe import DedupeSettings
from miudo.data.mixture import Source
from miudo.data.pack import PackSettings, hold_out
from miudo.data.pipeline import PrepareSettings, prepare
from miudo.data.sources import ReadSettings
from miudo.engine.fake import FakeEngine
from miudo.evaluate.tasks.catalogue import TASKS
from miudo.text.tokenizer import train_bpe

TOKENIZER = train_bpe(["no merges"], vocab_size=261)
CONFIG = ModelConfig.uniform(
    vocab_size=261, d_model=8, n_layers=1, n_heads=1, d_ff=8, max_positions=512, bos_id=0
)
# The model prefers early letters: an id's logit falls with its number.
LOGITS = -np.arange(261, dtype=np.float32) / 16

Run = Callable[..., Result]


@pytest.fixture
def engines() -> list[FakeEngine]:
    """The engines that were loaded, to see what was asked of them."""
    return []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engines: list[FakeEngine]) -> Run:
    def load(path: Path, **options: Any) -> Any:
        engine = FakeEngine(CONFIG, lambda ids: LOGITS)
        engines.append(engine)
        return SimpleNamespace(path=path, engine=engine, tokenizer=TOKENIZER, adapter=None)

    monkeypatch.setattr("miudo.evaluate.loading.load_model", load)
    model = tmp_path / "m.gguf"
    model.touch()
    return lambda *a, **stdin: CliRunner().invoke(cli, ["eval", str(model), *map(str, a)], **stdin)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "blimp").mkdir(parents=True)
    pairs = [("aa", "bb"), ("bb", "aa"), ("ab", "ba")]
    (folder / "blimp/p.jsonl").write_text(
        "".join(json.dumps({"sentence_good": g, "sentence_bad": b}) + "\n" for g, b in pairs)
    )
    question = {"question": "q", "choices": {"A": "a", "B": "b"}, "answer": "A"}
    for split in ("dev", "train"):
        (folder / f"arc_easy_{split}.jsonl").write_text(
            json.dumps(question | {"question": split}) + "\n"
        )
    for name in ("one", "two"):
        (folder / f"{name}.txt").write_text(f"The {name} ran to the {name}. " * 20)
    return folder


def test_tasks_have_a_row_each(run: Run, data: Path) -> None:
    result = run("--task", "blimp,arc_easy", "--task-data", data)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:4] == ["task", "metric", "score", "95%"]
    # One of three: Wilson's interval is 6.1% to 79.2%.
    assert lines[2].split() == [
        "blimp", "acc", "33.3%", "6.1%", "to", "79.2%", "50.0%", "33.3%", "3", "0", "1", "0",
        "n/a", lines[2].split()[-1],
    ]  # fmt: skip
    assert lines[3].split()[:3] == ["arc_easy", "acc_norm", "100.0%"]


def test_json_samples_overlap_and_settings(run: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"
    result = run(
        "--task", "arc_easy", "--task", "last_word", "--task-data", data, "--data",
        data / "one.txt", "--against", data / "one.txt", "--samples", out, "--shots", 1, "--set",
        "last_word.sentences=2", "--set", "seed=3", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["schema"] == 1
    assert values["documents"] == 1  # perplexity on the same text
    assert values["task_settings"]["seed"] == 3
    arc, last = values["tasks"]
    assert (arc["task"], arc["score"]["right"], arc["shots"]) == ("arc_easy", 1, 1)
    assert arc["overlap"] == {"found": 0, "checked": 0, "unchecked": 1, "share": 0.0}
    assert last["overlap"]["share"] == 1.0
    assert last["perplexity"] > 1
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert {record["task"] for record in records} == {"arc_easy", "last_word"}
    assert records[0]["prompt"] == "Question: train\nAnswer: a\n\nQuestion: dev\nAnswer:"


def test_several_texts_have_a_row_each(run: Run, data: Path) -> None:
    texts = ["--data", data / "one.txt", "--data", data / "two.txt"]
    values = json.loads(run(*texts, "--json").stdout)
    one, two = values["domains"]
    assert one["data"] == str(data / "one.txt")
    for name in ("tokens", "bytes", "documents"):
        assert values[name] == one[name] + two[name]
    total = one["nll"] * one["tokens"] + two["nll"] * two["tokens"]
    assert values["nll"] == pytest.approx(total / values["tokens"])
    shown = run(*texts).stdout
    assert shown.startswith("perplexity ")
    assert [f"{d['bits_per_byte']:.5f}" in shown for d in (values, one, two)] == [True] * 3
    single = run("--data", data / "one.txt")
    assert len(single.stdout.splitlines()) == 4
    assert "domains" not in json.loads(run("--data", data / "one.txt", "--json").stdout)
    cut = json.loads(run(*texts, "--max-bytes", 100, "--json").stdout)
    assert [d["bytes"] for d in cut["domains"]] == [100, 100]


@pytest.fixture
def mixture(data: Path, tmp_path: Path) -> Path:
    """A data folder of two sources."""
    for name in ("cats", "dogs"):
        (data / f"{name}.txt").write_text("".join(f"{i} {name} sat\n" for i in range(40)))
    by_line = ReadSettings(split="line")
    sources = tuple(
        Source(name, f"{name}.txt", "CC0-1.0", read=by_line) for name in ("cats", "dogs")
    )
    settings = PrepareSettings(
        vocab_size=300,
        root=data,
        sources=sources,
        dedupe=DedupeSettings(near=None),
        pack=PackSettings(held_out=0.3, seed=1),
    )
    return prepare([], tmp_path / "mixed", settings=settings).folder


def test_the_sources_of_a_data_folder_have_a_row_each(run: Run, data: Path, mixture: Path) -> None:
    values = json.loads(run("--data", mixture, "--json").stdout)
    cats, dogs = values["domains"]
    assert [(d["data"], d["source"]) for d in (cats, dogs)] == [
        (str(mixture), "cats"), (str(mixture), "dogs"),
    ]  # fmt: skip
    for name, wanted in (("cats", cats), ("dogs", dogs)):
        texts = [f"{i} {name} sat" for i in range(40)]
        assert wanted["documents"] == sum(hold_out(text, 1) < 0.3 for text in texts)
    for name in ("tokens", "bytes", "documents"):
        assert values[name] == cats[name] + dogs[name]
    shown = run("--data", mixture).stdout
    assert [line.split()[0] for line in shown.splitlines()[-2:]] == ["cats", "dogs"]
    # Beside another text the folder has a row of its own too.
    both = json.loads(run("--data", mixture, "--data", data / "one.txt", "--json").stdout)
    assert [(d["data"], d["source"]) for d in both["domains"]] == [
        (str(mixture), None), (str(mixture), "cats"), (str(mixture), "dogs"),
        (str(data / "one.txt"), None),
    ]  # fmt: skip
    folder = both["domains"][0]
    assert folder["nll"] == pytest.approx(values["nll"])
    assert both["tokens"] == folder["tokens"] + both["domains"][3]["tokens"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--data", "absent.txt"), 4, "absent.txt"),
        (("--task", "labels"), 4, "the task labels found no file"),
        (("--samples", "absent/s.jsonl"), 4, "absent: no such folder"),
        (("--samples", "data"), 2, "data: is a folder"),
        (("--against", "one.txt", "--against", "absent.txt"), 4, "absent.txt"),
        (("--against", "broken.jsonl"), 1, "broken.jsonl, line 3: not JSON"),
        (("--shots", "2"), 1, "1 examples are there for it, 2 are asked for"),
        (("--task", "csqa"), 1, "nothing to score, 1 left out (a choice is longer than"),
    ],
)
def test_what_is_wrong_is_told_before_the_first_sample(
    run: Run,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    engines: list[FakeEngine],
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(data)
    (data / "data").mkdir()
    (data / "broken.jsonl").write_text('{"text": "a b c d e f g h i"}\n' * 2 + "{\n")
    long = {"question": "q", "choices": ["a", "b" * 801], "answer": "A"}
    (data / "csqa_train.jsonl").write_text(json.dumps(long) + "\n")
    asked: list[object] = []
    monkeypatch.setattr(FakeEngine, "score", lambda *a, **b: asked.append(a))
    monkeypatch.setattr(FakeEngine, "step", lambda *a, **b: asked.append(a))
    result = run(
        "--data", "one.txt", "--task", "arc_easy,last_word", "--set", "last_word.sentences=2",
        "--task-data", ".", *arguments,
    )  # fmt: skip
    assert (result.exit_code, message in result.stderr) == (code, True), result.output
    assert (asked, result.stdout) == ([], "")


def test_one_record_that_cannot_be_asked_stops_no_task(run: Run, data: Path) -> None:
    records = [
        {"id": 0, "question": "q", "choices": ["a", "b"], "answer": "A"},
        {"id": 1, "question": "q", "choices": ["a", "b" * 801], "answer": "A"},
    ]
    (data / "csqa_train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    result = run("--task", "csqa", "--task-data", data)
    assert result.exit_code == 0, result.output
    assert "csqa: 1 left out (a choice is longer than the model's 512 positions)" in result.stdout
    (scored,) = json.loads(run("--task", "csqa", "--task-data", data, "--json").stdout)["tasks"]
    assert scored["score"]["samples"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("--task", "last_word", "--data", "-"),
        ("--task", "last_word", "--task-data", "-", "--against", "-"),
        ("--task", "arc_easy", "--task-data", ".", "--data", "-", "--against", "./-"),
    ],
)
def test_standard_input_is_not_read_twice(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments, input="The fox ran to the fox. " * 20)
    assert result.exit_code == 2, result.output
    assert "-: standard input can be read once" in result.stderr


def test_last_words_of_standard_input_alone(run: Run) -> None:
    arguments = ("--task", "last_word", "--task-data", "-", "--set", "last_word.sentences=2")
    result = run(*arguments, input="The fox ran to the fox. " * 20)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "nothing to measure on"),
        (("--task", "blmp"), 2, "Did you mean 'blimp'"),
        (("--task", "blimp"), 2, "Give --task-data"),
        (("--task", "blimp", "--task-data", "absent"), 4, "no such file or folder"),
        (("--data", "d", "--shots", "2"), 2, "--shots says how tasks run"),
        (("--data", "d", "--set", "seed=2"), 2, "seed says how tasks run"),
        (("--data", "d", "--set", "sed=2"), 2, "Did you mean 'seed'"),
        (("--data", "d", "--data", "d"), 2, "d: is named twice"),
        (("--task", "mmlu", "--task-data", "d", "--set", "labels.prompt=x"), 2, "{text}"),
        (("--task", "mmlu", "--task-data", "d", "--set", "labels.promt=x"), 2, "'prompt'"),
    ],
)
def test_what_does_not_fit_is_refused(
    run: Run, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr


def test_samples_do_not_replace_what_they_are_made_from(run: Run, data: Path) -> None:
    file = data / "arc_easy_dev.jsonl"
    result = run("--task", "arc_easy", "--task-data", file, "--samples", file)
    assert result.exit_code == 2
    assert "would overwrite" in result.stderr


def test_the_help_names_every_task(run: Run) -> None:
    text = run("--help").stdout
    assert all(name in text for name in TASKS)
