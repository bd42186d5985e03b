"""`miudo bench` on the model inside the package: what it prints, writes and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from miudo.cli.main import cli
from miudo.hub.resolve import embedded_path

SHORT = ("--contexts", "16,32", "--batches", "1,2", "--new-tokens", "4", "--seconds", "0.5")


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, arguments)])


def test_it_prints_facts_and_a_table_and_writes_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = bench(embedded_path(), *SHORT, "--threads", "1", "--phases", "--out", page)
    assert result.exit_code == 0, result.output
    facts = dict(line.split("  ", 1) for line in result.stdout.splitlines()[:4])
    assert "1 threads, int8 activations" in facts["runs on"]
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("     ")]
    assert rows[0][:2] == ["16", "1"]
    assert "feed-forward" in result.stdout
    assert "context 16, batch 1" in result.stderr
    assert page.read_text().count("<svg") == 3


def test_json_is_one_object_with_every_number() -> None:
    result = bench(embedded_path(), *SHORT, "--watts", "3", "--cache-type", "int4", "--json")
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    first = values["grid"]["cells"][0]
    assert (values["schema"], first["context"], first["batch"]) == (1, 16, 1)
    assert values["cache"] == "int4"
    assert first["decode"]["tokens_per_s"] > 0
    assert first["decode"]["of_bandwidth"] > 0
    assert values["memory"]["read_bytes"] >= 256 << 20
    energy = first["decode"]["energy"]
    assert not energy["estimate"] or " x 3 W assumed" in energy["method"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--contexts", "16,many"), 2, "'16,many' is not like 16,512"),
        (("--batches", "0"), 2, "at least 1"),
        (("--watts", "0"), 2, "--watts"),
        (("--cache-type", "int2"), 2, "'int2' is not one of"),
        (("--out", "page.svg"), 2, "ends in .html"),
        (("--out", "nowhere/page.html"), 4, "no such folder"),
    ],
)
def test_what_it_cannot_do_is_refused_before_it_begins(
    arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = bench("no-model-is-opened.gguf", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


def test_a_page_without_what_draws_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = bench(embedded_path(), "--out", tmp_path / "page.html")
    assert result.exit_code == 4
    assert "miudo[make]" in result.stderr
