"""`miudo route` on the command line: the whole way, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from miudo.cli.main import cli

TABLE = """
complexity = "keywords"

[[targets]]
name = "small"
model = "miudo-6m"
tokens_per_s = 900.0
skip_above = 0.5

[[targets]]
name = "twin"
model = "miudo-6m"
licence = "Apache-2.0"
uses = ["research"]

[[targets]]
name = "far"
model = "big"
url = "https://example.org/v1"
leaves = true
"""
HARD = "Explain why 2 + 2 = 4, compare it with 3 + 3 and prove it if you can"


def told(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(cli, ["route", *arguments, "--json"])
    assert done.exit_code == code, (done.output, done.exception)
    return json.loads(done.stdout)


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "table.toml"
    path.write_text(TABLE)
    return str(path)


def test_explaining_asks_nobody_and_names_every_reason(table: str) -> None:
    easy = told("explain", table, "my card")
    assert easy["order"] == ["small", "far"]
    assert [(no["target"], no["rule"]) for no in easy["refused"]] == [("twin", "licence")]
    hard = told("explain", table, HARD, "--use", "research", "--stays")
    assert hard["order"] == ["twin"]
    assert {no["target"]: no["rule"] for no in hard["refused"]} == {
        "small": "complexity", "far": "stays"
    }  # fmt: skip
    text = CliRunner().invoke(cli, ["route", "explain", table, HARD]).output
    assert "complexity" in text
    assert "far: its answer is final" in text


def test_where_nobody_may_answer_the_check_fails(table: str) -> None:
    demands = ("--offline", "--max-tokens", "100", "--deadline", "0.01")
    refused = told("explain", table, "hello", *demands, code=3)
    assert refused["order"] == []
    assert len(refused["refused"]) == 3


def test_the_whole_way(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    small = '[[targets]]\nname = "small"\nmodel = "miudo-6m"\n'
    path.write_text('complexity = "router"\n' + small + small.replace("small", "large"))
    data = tmp_path / "examples.jsonl"
    rows = [{"prompt": f"What is {i}?", "answer": "no idea"} for i in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "observed.jsonl"
    seen = told("observe", str(path), "--data", str(data), "--out", str(out), "--max-tokens", "3")
    assert seen["right"]["small"]["samples"] == 6
    observed = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(set(row["answered"]) == {"small", "large"} for row in observed)
    # What these models got right is not the point: say of half that they were.
    lines = []
    for i in range(80):
        prompt = f"{'why' if i % 2 else 'at'} {i}"
        row = json.loads(json.dumps(observed[i % 6])) | {"prompt": prompt}
        row["answered"]["small"]["right"] = i % 2 == 0
        lines.append(json.dumps(row) + "\n")
    out.write_text("".join(lines))
    trained = told("train", str(out), "--target", "small", "--out", str(tmp_path / "router"))
    assert trained["auroc"] > 0.9
    made = told("calibrate", str(path), "--data", str(out), "--share", "0.5")
    assert (made["target"], made["setting"]) == ("small", "skip_above")
    assert made["found"]["passed_on"]["value"] == 0.5
    aim = ("--share", "0.5", "--signal", "confidence")
    sure = told("calibrate", str(path), "--data", str(out), *aim)
    assert sure["setting"] == "accept_above"
    line = CliRunner().invoke(
        cli, ["route", "calibrate", str(path), "--data", str(out), "--share", "0.5"]
    )
    assert line.output.startswith("skip_above = 0.")
    assert "95% interval" in line.output


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["explain", "no-such.toml", "hello"], 4),
        (["explain", "TABLE", "hello", "--deadline", "1"], 2),
        (["calibrate", "TABLE", "--data", "no-such.jsonl", "--share", "0.5"], 4),
        (["calibrate", "TABLE", "--data", "TABLE"], 2),
        (["observe", "TABLE", "--data", "TABLE", "--out", "TABLE"], 2),
        (["train", "TABLE", "--target", "small", "--out", "made"], 1),
        (["dance"], 2),
    ],
)
def test_what_cannot_be_is_refused_with_its_code(
    table: str, arguments: list[str], code: int
) -> None:
    given = [table if a == "TABLE" else a for a in arguments]
    done = CliRunner().invoke(cli, ["route", *given])
    assert done.exit_code == code, (done.output, done.exception)
