"""Recipes on the command line: one meaning for `prepare` and `train`, and every mistake told."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from miudo.cli.main import cli
from miudo.data.packed import DataSet
from miudo.records import Record

RECIPE = """
preset = "1m"
tokens = 2048
batch_size = 2
length = 32
seed = 7
compile = "off"
[prepare]
vocab_size = 300
pack = {{ held_out = 0.1 }}
root = "{root}"
[[prepare.sources]]
name = "cats"
path = "cats.txt"
licence = "CC0-1.0"
read = {{ split = "line" }}
[[prepare.sources]]
name = "dogs"
path = "dogs.txt"
licence = "CC-BY-4.0"
weight = 0.5
read = {{ split = "line" }}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    for name, count in (("cats", 60), ("dogs", 40)):
        lines = [f"{name} {sha256(f'{name} {i}'.encode()).hexdigest()} mat" for i in range(count)]
        (tmp_path / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(root=tmp_path))
    return path


def miudo(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], standalone_mode=True)


def changed(recipe: Path, old: str, new: str) -> Path:
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))
    return recipe


def test_prepare_and_train_make_the_same_data_of_one_recipe(recipe: Path, tmp_path: Path) -> None:
    assert miudo("prepare", "--config", recipe, "--out", tmp_path / "data").exit_code == 0
    done = miudo("train", "--config", recipe, "--steps", 1, "--out", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.output
    one, other = DataSet.open(tmp_path / "data"), DataSet.open(tmp_path / "run" / "data")
    assert one.manifest == other.manifest
    # The typed length stands above the file's.
    assert json.loads(done.stdout)["fit"]["steps"] == 1
    record = Record.read(tmp_path / "run" / "model")
    assert record is not None
    assert record.licence == "CC-BY-4.0 AND CC0-1.0"
    assert {"epochs.cats", "epochs.dogs"} <= {m.name for m in record.measurements}


def test_a_run_goes_on_from_a_model(recipe: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert miudo("train", "--config", recipe, "--steps", 1, "--out", first).exit_code == 0
    done = miudo("train", "--config", recipe, "--init", first / "model", "--steps", 1, "--length",
                 48, "--out", second)  # fmt: skip
    assert done.exit_code == 0, done.output
    config = json.loads((second / "model" / "config.json").read_text())
    assert config["max_position_embeddings"] == 48
    record = Record.read(second / "model")
    assert record is not None
    assert [a.role for a in record.inputs] == ["data", "model"]
    assert [p.verb for p in record.parents] == ["prepare", "train"]
    done = miudo("train", "--config", recipe, "--init", first / "model", "--tokenizer",
                 first / "model", "--out", tmp_path / "third")  # fmt: skip
    assert (done.exit_code, "own tokenizer" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("pack.held_out=0.3", "Write prepare.pack"),
        ("bogus=1", "no setting is called 'bogus'"),
        ("prepare=3", "Make it a table"),
        ("prepare.sources=x", "Give a list"),
        ("prepare.vocab=300", "Did you mean 'vocab_size'?"),
    ],
)
def test_prepare_drops_no_setting_silently(
    recipe: Path, tmp_path: Path, setting: str, said: str
) -> None:
    done = miudo("prepare", "--config", recipe, "--set", setting, "--out", tmp_path / "data")
    assert (done.exit_code, said in done.output) == (2, True), done.output
    assert not (tmp_path / "data").exists()


def test_a_setting_of_the_table_is_applied(recipe: Path, tmp_path: Path) -> None:
    sizes = []
    for share in (0.1, 0.5):
        option = f"prepare.pack.held_out={share}"
        out = tmp_path / str(share)
        assert miudo("prepare", "--config", recipe, "--set", option, "--out", out).exit_code == 0
        sizes.append(DataSet.open(out).tokens("held_out"))
    assert sizes[1] > 2 * sizes[0]


def test_a_source_without_a_licence_is_named(recipe: Path, tmp_path: Path) -> None:
    changed(recipe, 'licence = "CC-BY-4.0"\n', "")
    done = miudo("train", "--config", recipe, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "sources, number 2: licence is missing" in done.output


def test_a_licence_that_is_no_expression_is_refused(recipe: Path, tmp_path: Path) -> None:
    changed(recipe, "CC0-1.0", "my own, hands off")
    done = miudo("prepare", "--config", recipe, "--out", tmp_path / "data")
    assert done.exit_code == 2
    assert "SPDX" in done.output


def test_a_source_that_would_never_be_seen_is_refused(recipe: Path, tmp_path: Path) -> None:
    changed(recipe, "weight = 0.5", "weight = 0.001")
    done = miudo("train", "--config", recipe, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "source 'dogs': gives no row of 32 tokens" in done.output


def test_equal_texts_of_two_sources_are_on_one_side(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "dogs.txt").write_text((tmp_path / "cats.txt").read_text())
    changed(recipe, "weight = 0.5", "held_out = 0.0")
    out = tmp_path / "data"
    assert miudo("prepare", "--config", recipe, "--keep-duplicates", "--out", out).exit_code == 0
    data = DataSet.open(out)
    texts = []
    for split in ("train", "held_out"):
        tokens = data.open_split(split)
        text = data.tokenizer().decode(tokens._window(0, tokens.n_tokens - 1).tolist())
        texts.append({line for line in text.replace("mat", "mat\n").splitlines() if line})
    assert texts[1]
    assert not texts[0] & texts[1]
