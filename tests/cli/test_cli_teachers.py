"""`ask` and the ways of `distill` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from miudo.cli.main import cli
from miudo.data.chats import ChatSettings, read_chats
from miudo.records import Record

TINY = Path(__file__).parent.parent / "data" / "tiny"


def miudo(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("Once upon\nThe cat\nOnce upon\n")
    return path


def test_a_model_of_this_machine_is_asked_and_again_says_the_same(
    tmp_path: Path, prompts: Path
) -> None:
    options = ["--prompts", prompts, "--max-tokens", 8, "--keep-cut", "--json"]
    result = miudo("ask", TINY, "--out", tmp_path / "a.jsonl", *options)
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert (values["prompts"], values["doubles"]) == (3, 1)
    assert values["kept"] + values["empty"] == 2
    assert values["kept"] > 0
    chats = list(read_chats([str(tmp_path / "a.jsonl")], ChatSettings()))
    assert chats[0].messages[0].content == "Once upon"
    record = Record.from_json(json.loads((tmp_path / "a.jsonl.record.json").read_text()))
    assert [part.role for part in record.inputs] == ["teacher", "prompts"]
    assert record.settings["teacher"]["model"] == TINY.name
    miudo("ask", TINY, "--out", tmp_path / "b.jsonl", *options)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert miudo("ask", TINY, "--out", tmp_path / "a.jsonl", *options).exit_code == 2
    again = miudo("ask", TINY, "--out", tmp_path / "a.jsonl", *options, "--resume")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("teacher", "options", "what"),
    [
        (TINY, ["--model", "x"], "is for an address"),
        (TINY, ["--workers", 2], "one at a time"),
        ("http://127.0.0.1:9/v1", [], "no model is named"),
        ("http://me:pw@127.0.0.1:9/v1", ["--model", "x"], "more than a host"),
        ("http://127.0.0.1:9/v1", ["--model", "x", "--key-variable", "NOT_SET"], "holds no key"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused(
    tmp_path: Path, prompts: Path, teacher: object, options: list[Any], what: str
) -> None:
    result = miudo("ask", teacher, "--prompts", prompts, "--out", tmp_path / "a.jsonl", *options)
    assert result.exit_code in (2, 4)
    assert what in result.output
    assert "pw" not in result.output
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--cache", "c", "--on-policy", 0.5], "one way at a time"),
        (["--set", "sampled.prompt=0.5"], "Give --on-policy"),
        (["--cross", "hybrid", "--loss", "reverse-kl"], "takes no --loss"),
        (["--cross", "hybrid"], "--start"),
        (["--on-policy", 2], "share is 2"),
        (["--cache", "c", "--set", "cached.kk=4"], "no setting is called 'kk'"),
    ],
)
def test_ways_that_cannot_be_are_refused(tmp_path: Path, options: list[Any], what: str) -> None:
    (tmp_path / "t.txt").write_text("Once upon a time. " * 40)
    result = miudo(
        "distill", TINY, "--data", tmp_path / "t.txt", "--out", tmp_path / "run", "--steps", 1,
        *options,
    )  # fmt: skip
    assert result.exit_code == 2
    assert what in result.output
    assert not (tmp_path / "run" / "model").exists()


def test_select_keeps_what_one_model_tells_from_another(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("Once upon a time.\nxqz kvw jjx\nThe cat sat.\nzzz qqq\n")
    options = ["--data", tmp_path / "t.txt", "--set", "read.split=line", "--json"]
    result = miudo(
        "select", "--teacher", TINY, "--reference", TINY, "--out", tmp_path / "k.jsonl", *options
    )
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert (values["documents"], values["kept"]) == (4, 2)
    assert values["mean_score"] == 0.0  # one model: nothing to tell, the first are kept
    lines = (tmp_path / "k.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"].strip() for line in lines] == [
        "Once upon a time.",
        "xqz kvw jjx",
    ]
