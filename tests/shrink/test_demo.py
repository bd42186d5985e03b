"""The demo, as short as it goes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from miudo.cli.main import cli
from miudo.errors import ConfigError
from miudo.formats import open_model
from miudo.shrink.demo import DemoSettings

SETTINGS = {
    "minutes": 0.05,
    "corpus_bytes": 60_000,
    "vocab_size": 512,
    "batch_size": 2,
    "length": 64,
    "measured_bytes": 3000,
}


def test_no_time_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="minutes"):
        DemoSettings(minutes=0.0)


@pytest.mark.slow
def test_the_whole_way_ends_in_a_table_a_page_and_lines_and_goes_on_where_it_stopped(
    tmp_path: Path,
) -> None:
    out = tmp_path / "demo"
    options = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    result = CliRunner().invoke(cli, ["demo", "--out", str(out), "--json", *options])
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    assert made["synthetic"] is True
    names = [row["name"] for row in made["comparison"]["models"]]
    assert names == ["teacher", "student", "student 8-bit", "twin from scratch"]
    assert len(made["samples"]) == 4
    page = (out / "report.html").read_text()
    for word in (
        "<svg",
        "synthetic",
        "twin from scratch",
        "How it came to be",
        "Numa segunda-feira",
    ):
        assert word in page
    record = open_model(out / "student.gguf").record
    assert record is not None
    assert [record.verb, record.parents[0].verb] == ["quantize", "prune"]

    (out / "samples.json").unlink()
    again = CliRunner().invoke(cli, ["demo", "--out", str(out), "--json", *options])
    assert again.exit_code == 0, again.stderr
    assert again.stderr.count("done before") == 7
    assert json.loads(again.stdout)["samples"] == made["samples"]

    other = CliRunner().invoke(cli, ["demo", "--out", str(out), "--seed", "9", *options])
    assert other.exit_code == 2
    assert "other settings" in other.stderr
