"""`miudo finetune` and `miudo merge` from the command line: preview, dry run, run, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from miudo.cli.main import cli

TINY = Path(__file__).parents[1] / "data" / "tiny"
SHORT = [
    "--chat-template", "default", "--batch-size", "2", "--length", "32", "--set", "compile=off",
    "--set", "precision=f32",
]  # fmt: skip


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def values(*arguments: str | Path) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "chat.csv"
    rows = "".join(f"q{i} is?,a{i} is.\n" for i in range(6))
    path.write_text("frage,antwort\n" + rows)
    return path


COLUMNS = ["--set", "chat.prompt=frage", "--set", "chat.answer=antwort"]


def test_from_a_table_to_one_model(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--epochs", "2", "--rank", "2", "--targets", "q,v", *COLUMNS, *SHORT]
    made = values("finetune", TINY, "--data", data, "--out", out, *options)
    assert made["adapter"] == str(out / "adapter")
    assert made["fit"]["steps"] >= 2
    record = json.loads((out / "adapter" / "record.json").read_text())
    assert record["settings"]["lora"]["targets"] == ["q", "v"]
    assert record["command"][:2] == ["miudo", "finetune"]
    again = values("finetune", TINY, "--data", data, "--out", out, "--resume", *options)
    assert again["fit"]["steps"] == made["fit"]["steps"]
    merged = values("merge", TINY, out / "adapter", "--out", tmp_path / "m", "--dtype", "BF16")
    (tmp_path / "m" / "notes.txt").write_text("mine")
    again = ("merge", TINY, out / "adapter", "--out", tmp_path / "m")
    refused = invoke(*again)
    assert refused.exit_code == 2
    assert "is there already. Give another --out, or --force" in refused.stderr
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"
    assert invoke(*again, "--dtype", "BF16", "--force").exit_code == 0
    shown = values("show", merged["model"])
    assert shown["record"]["verb"] == "merge"
    assert [p["verb"] for p in shown["record"]["parents"]] == ["train", "finetune"]


def test_all_weights(data: Path, tmp_path: Path) -> None:
    made = values(
        "finetune", TINY, "--data", data, "--out", tmp_path / "o", "--full", "--steps", "1",
        *COLUMNS, *SHORT,
    )  # fmt: skip
    assert made["model"] == str(tmp_path / "o" / "model")


def test_a_preview_marks_what_is_learned(data: Path, tmp_path: Path) -> None:
    result = invoke("finetune", TINY, "--data", data, "--preview", "1", *COLUMNS, *SHORT)
    assert result.exit_code == 0, result.output
    assert "<|user|>q0 is?<|end|><|assistant|>[a0 is.<|end|>]" in result.stdout
    assert "What is learned stands in brackets." in result.stdout
    shown = values("finetune", TINY, "--data", data, "--preview", "2", *COLUMNS, *SHORT)
    assert len(shown["samples"]) == 2
    assert [s["text"] for s in shown["samples"][1]["spans"] if s["learned"]] == ["a1 is.<|end|>"]
    assert {p.name for p in tmp_path.iterdir()} == {"chat.csv"}


def test_a_dry_run_tells_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    options = ["--data", data, "--dry-run", "--steps", "7", *COLUMNS, *SHORT]
    found = values("finetune", TINY, *options)
    assert found["steps"] == 7
    assert found["predicted_bytes"] == sum(part["size_bytes"] for part in found["memory"])
    assert found["run_s"] == pytest.approx(7 * found["step_s"])
    text = invoke("finetune", TINY, *options).stdout
    assert "with checkpointing" in text
    assert "7 steps of" in text
    assert {p.name for p in tmp_path.iterdir()} == {"chat.csv"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "{data}", "--steps", "1"], 2, "--out: no folder is named"),
        (["--out", "{out}", "--steps", "1"], 2, "--data"),
        (
            ["--data", "{data}", "--out", "{out}"],
            2,
            "--epochs, --tokens, --steps, --minutes: the run's length is given 0 times",
        ),
        (
            ["--data", "{data}", "--out", "{out}", "--epochs", "1", "--steps", "1"],
            2,
            "given 2 times",
        ),
        (["--data", "{data}", "--out", "{out}", "--steps", "1"], 1, "has no column 'prompt'"),
        (
            ["--data", "{data}", "--out", "{out}", "--steps", "1", "--full", "--rank", "4"],
            2,
            "Leave out --rank",
        ),
        (
            ["--data", "{data}", "--out", "{out}", "--steps", "1", "--targets", "query"],
            2,
            "targets names query",
        ),
        (
            ["--data", "{data}", "--out", "{out}", "--steps", "1", "--set", "lora_settings=3"],
            2,
            "lora_settings: the value is 3. Give a table of settings",
        ),
        (
            ["--data", "{data}", "--out", "{out}", "--steps", "1", "--set", "targets=['q', 'v']"],
            2,
            "targets is ['q', 'v'], it takes one value",
        ),
        (["--data", "{out}/none.csv", "--out", "{out}", "--steps", "1"], 4, "none.csv"),
        (["--data", "{data}", "--out", "{out}", "--steps", "1", "--set", "chat.x=1"], 2, "chat"),
    ],
)
def test_what_cannot_be_is_said_with_its_cure(
    data: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    given = [a.format(data=data, out=tmp_path / "out") for a in arguments]
    result = invoke("finetune", TINY, *given, *SHORT)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert not (tmp_path / "out" / "adapter").exists()


def test_a_length_that_is_typed_stands_above_the_files(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('epochs = 50\nrank = 2\ntargets = "q,v"\n')
    common = ["finetune", TINY, "--data", data, "--config", recipe, "--dry-run", *COLUMNS, *SHORT]
    rows = values(*common)["steps"] / 50
    assert values(*common, "--steps", "3")["steps"] == 3
    recipe.write_text("steps = 50\n")
    assert values(*common, "--epochs", "2")["steps"] == 2 * rows
    both = invoke(*common, "--epochs", "2", "--tokens", "64")
    assert (both.exit_code, "given 2 times" in both.stderr) == (2, True), both.output


def test_a_preview_names_what_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(f"prompt,answer\na,{'word ' * 40}\na,b\n")
    result = invoke("finetune", TINY, "--data", tmp_path / "c.csv", "--preview", "2", *SHORT)
    assert result.exit_code == 0, result.output
    assert "c.csv, line 2, messages[1] (" in result.stdout
    assert "tokens): longer than a row, left out\n" in result.stdout
    assert "<|user|>a<|end|><|assistant|>[b<|end|>]" in result.stdout
