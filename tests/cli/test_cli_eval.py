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
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    def load(path: Path, **options: Any) -> Any:
        engine = FakeEngine(CONFIG, lambda ids: LOGITS)
        return SimpleNamespace(path=path, engine=engine, tokenizer=TOKENIZER)

    monkeypatch.setattr("miudo.evaluate.loading.load_model", load)
    model = tmp_path / "m.gguf"
    model.touch()
    return lambda *a: CliRunner().invoke(cli, ["eval", str(model), *map(str, a)])


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
        (("--data", "d", "--data", "d"), 2, "named twice"),
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
