"""`pull`, `list`, `import`, `rm`, `catalog`, and what `run` and `show` make of references."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import constants

from miudo.cli.main import cli
from miudo.cli.options import parse_size
from miudo.errors import UsageError
from miudo.formats import open_model
from miudo.formats.export import export
from miudo.records import Record

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny"
COMMIT = "a" * 40


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def told(*arguments: str) -> Any:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def cached() -> Path:
    """The tiny model in the hub's cache as another program leaves it there: links to blobs."""
    return put_into_cache("google/gemma-2-2b-it")


def put_into_cache(repo_id: str, record: Record | None = None) -> Path:
    repository = Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for path in TINY.iterdir():
        if path.name != "record.json":
            shutil.copy(path, repository / "blobs" / path.name)
            (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    if record is not None:
        record.write(snapshot)
    return snapshot


def test_a_model_of_the_cache_runs_by_its_name_and_by_its_reference(
    cached: Path,
) -> None:
    for name in ("gemma2:2b", "hf://google/gemma-2-2b-it", f"hf://google/gemma-2-2b-it@{COMMIT}"):
        result = call("run", name, "hello", "--max-tokens", "2")
        assert result.exit_code == 0, result.stderr
        assert told("show", name)["path"] == str(cached)


def test_run_states_a_restrictive_licence_once(cached: Path) -> None:
    first = call("run", "gemma2:2b", "hello", "--max-tokens", "1")
    assert "LicenseRef-Gemma. A policy of prohibited uses" in first.stderr
    assert "LicenseRef-Gemma" not in first.stdout
    again = call("run", "hf://google/gemma-2-2b-it", "hello", "--max-tokens", "1")
    assert again.exit_code == 0
    assert "LicenseRef-Gemma" not in again.stderr
    (book,) = Path(os.environ["XDG_DATA_HOME"]).rglob("licences.json")
    stated = json.loads(book.read_text())["google/gemma-2-2b-it"]
    assert stated["licence"] == "LicenseRef-Gemma"
    assert stated["stated"].startswith("20")


def test_run_states_the_licence_that_a_file_carries(cached: Path, tmp_path: Path) -> None:
    record = Record(verb="quantize", name="small", licence="CC-BY-NC-4.0")
    folder = tmp_path / "small"
    shutil.copytree(TINY, folder)
    record.write(folder)
    assert "Not for commercial use" in call("run", str(folder), "hi", "--max-tokens", "1").stderr
    assert "commercial" not in call("run", str(folder), "hi", "--max-tokens", "1").stderr


def test_a_permissive_licence_is_not_stated(tmp_path: Path) -> None:
    put_into_cache("Qwen/Qwen3-0.6B")
    result = call("run", "qwen3:0.6b", "hello", "--max-tokens", "1")
    assert result.exit_code == 0
    assert result.stderr == ""


@pytest.mark.parametrize("unwritable", [False, True])
def test_a_book_that_cannot_be_kept_stops_nothing(
    cached: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unwritable: bool
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if unwritable:
        (home / "licences.json").mkdir()
    else:
        (home / "licences.json").write_text("[not json")
    monkeypatch.setenv("MIUDO_HOME", str(home))
    for again in range(2):
        result = call("run", "gemma2:2b", "hello", "--max-tokens", "1")
        assert result.exit_code == 0
        assert ("LicenseRef-Gemma" in result.stderr) == (unwritable or again == 0)


def test_what_is_not_here_says_how_to_fetch_it_and_fetches_nothing() -> None:
    for name in ("qwen3:0.6b", "hf://Qwen/Qwen3-0.6B"):
        result = call("run", name, "hello")
        assert result.exit_code == 4
        assert f"Fetch it: miudo pull {name}" in result.stderr
    result = call("run", "Qwen/Qwen3-0.6B", "hello")
    assert result.exit_code == 4
    assert "write hf://Qwen/Qwen3-0.6B" in result.stderr
    result = call("run", "qwen33:0.6b", "hello")
    assert result.exit_code == 4
    assert "Did you mean qwen3?" in result.stderr
    assert call("run", "qwen3", "hello").exit_code == 2


def test_half_a_model_is_not_here(cached: Path) -> None:
    (cached / "model.safetensors").resolve().unlink()
    result = call("run", "gemma2:2b", "hello")
    assert result.exit_code == 4
    assert "not whole" in result.stderr
    assert "gemma2:2b" not in call("list").stdout


def test_show_tells_what_the_catalogue_says_of_a_model_that_is_not_here() -> None:
    result = call("show", "gemma2:2b")
    assert result.exit_code == 0
    assert "is not on this machine" in result.stderr
    assert "A policy of prohibited uses" in result.stdout
    assert told("show", "hf://google/gemma-2-2b")["name"] == "gemma2:2b"
    assert call("show", "hf://no/body").exit_code == 4
    for asked in ("--verify", "--template"):
        result = call("show", "gemma2:2b", asked)
        assert result.exit_code == 4
        assert not result.stdout
        assert "Fetch it: miudo pull gemma2:2b" in result.stderr


def test_list_names_every_model_and_where_it_came_from(cached: Path) -> None:
    record = Record(verb="pull", name="x", licence="MIT", outputs={"config.json": "0" * 64})
    put_into_cache("org/mine", record)
    shutil.copytree(TINY, "tiny-copy")
    assert call("import", "tiny-copy", "--name", "mine:v1").exit_code == 0
    rows = {row["name"]: row for row in told("list")["models"]}
    assert {"mine:v1", "gemma2:2b", "hf://org/mine"} <= rows.keys()
    assert rows["gemma2:2b"]["licence"] == "LicenseRef-Gemma"
    assert rows["gemma2:2b"]["from"].endswith("by another program")
    assert rows["gemma2:2b"]["commit"] == COMMIT
    assert rows["hf://org/mine"]["licence"] == "MIT"
    assert rows["mine:v1"]["from"] == "imported"
    text = call("list").stdout
    assert all(name in text for name in rows)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_an_imported_folder_goes_by_its_name_everywhere(tmp_path: Path) -> None:
    source = Path("Tiny Model")
    shutil.copytree(TINY, source)
    (source / "modeling.py").write_text("raise SystemExit")
    made = told("import", str(source), "--license", "Apache-2.0")
    assert made["name"] == "tiny-model"
    shutil.rmtree(source)
    path = Path(made["path"])
    assert not (path / "modeling.py").exists()
    record = open_model(path).record
    assert record is not None
    assert (record.verb, record.licence) == ("import", "Apache-2.0")
    assert [parent.name for parent in record.parents]
    assert call("show", "tiny-model", "--verify").exit_code == 0
    assert call("run", "tiny-model", "hello", "--max-tokens", "1").exit_code == 0
    assert call("export", "tiny-model", "--to", "gguf", "--out", "x.gguf").exit_code == 0
    assert "is there already" in call("import", str(path), "--name", "tiny-model").stderr
    Path("text.txt").write_text("Once upon a time there was a cat.")
    options = ("--data", "text.txt", "--repeats", "1", "--threads", "1")
    assert told("compare", "tiny-model", *options)["models"][0]["name"] == "tiny-model"


def test_an_imported_file_keeps_its_lineage(tmp_path: Path) -> None:
    export(TINY, Path("tiny.gguf"), to="gguf")
    made = told("import", "tiny.gguf", "--name", "mine:gguf")
    record = open_model(Path(made["path"])).record
    assert record is not None
    assert record.verb == "import"
    assert [parent.verb for parent in record.parents] == ["export"]
    assert told("show", "mine:gguf")["record"]["verb"] == "import"


def test_files_that_are_not_those_of_the_record_are_not_imported() -> None:
    shutil.copytree(TINY, "tiny")
    config = Path("tiny/config.json")
    config.write_bytes(config.read_bytes() + b"\n")
    result = call("import", "tiny", "--name", "mine")
    assert result.exit_code == 1
    assert "config.json: is not the file of the record" in result.stderr
    assert "mine" not in call("list").stdout
    assert not list(Path(os.environ["XDG_DATA_HOME"]).rglob("config.json"))


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("Big Name", 2, "is no name for a model"),
        ("../up", 2, "is no name for a model"),
        ("hf://a/b", 2, "is no name for a model"),
        ("gemma2:mine", 2, "is the name of a model that miudo knows"),
        ("miudo-6m", 2, "is the name of a model that miudo knows"),
    ],
)
def test_a_name_that_would_mislead_is_refused(name: str, code: int, said: str) -> None:
    result = call("import", str(TINY), "--name", name)
    assert result.exit_code == code
    assert said in result.stderr


def test_what_does_not_open_is_not_imported(tmp_path: Path) -> None:
    Path("bad.gguf").write_bytes(b"GGUF but not really")
    assert call("import", "bad.gguf").exit_code == 1
    assert call("import", "absent").exit_code == 4
    assert not list(Path(os.environ["XDG_DATA_HOME"]).rglob("*.gguf"))


def test_export_says_what_other_types_a_file_holds_and_what_it_lacks(tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    shutil.copytree(TINY, silent, ignore=shutil.ignore_patterns("tokenizer*", "record.json"))
    made = told("export", str(silent), "--to", "gguf", "--out", str(tmp_path / "silent.gguf"))
    assert made["notes"] == ["has no tokenizer: MODEL has none that miudo reads"]
    result = call(
        "export", str(TINY), "--to", "hf", "--dtype", "q8_0", "--out", str(tmp_path / "x")
    )
    assert result.exit_code == 2
    assert "a folder cannot hold Q8_0" in result.stderr
    assert not (tmp_path / "x").exists()


def test_rm_takes_away_what_was_imported_once() -> None:
    assert call("import", str(TINY), "--name", "mine:v1").exit_code == 0
    gone = told("rm", "mine:v1")
    assert gone["freed_bytes"] > 100_000
    assert call("rm", "mine:v1").exit_code == 4
    assert call("run", "mine:v1", "x").exit_code == 4


def test_rm_leaves_what_is_not_its_own(cached: Path) -> None:
    result = call("rm", "gemma2:2b")
    assert result.exit_code == 2
    assert "another program" in result.stderr
    assert (cached / "model.safetensors").exists()
    assert told("rm", "gemma2:2b", "--force")["freed_bytes"] > 100_000
    assert not cached.exists()
    assert call("rm", "gemma2:2b", "--force").exit_code == 4
    for own in ("miudo-6m", "./somewhere"):
        assert call("rm", own).exit_code == 2


def test_rm_means_one_repository_though_a_copy_has_the_same_commit(cached: Path) -> None:
    copy = put_into_cache("somebody/gemma-copy")
    others = [put_into_cache(f"somebody/copy-{i}") for i in range(5)]
    assert call("rm", "gemma2:2b", "--force").exit_code == 0
    assert not cached.exists()
    assert all(other.exists() for other in others)
    assert call("run", "hf://somebody/gemma-copy", "x", "--max-tokens", "1").exit_code == 0
    (copy / "onnx").mkdir()
    (copy / "onnx" / "of-another-program").write_text("x")
    assert call("rm", "hf://somebody/gemma-copy", "--force").exit_code == 0
    assert [path.name for path in copy.rglob("*") if not path.is_dir()] == ["of-another-program"]


def test_rm_of_one_file_keeps_what_others_share(tmp_path: Path) -> None:
    record = Record(verb="pull", name="x", outputs={"a.gguf": "0" * 64, "b.gguf": "0" * 64})
    snapshot = put_into_cache("org/mine", record)
    blobs = snapshot.parents[1] / "blobs"
    for name in ("one", "two"):
        (blobs / name).write_bytes(name.encode() * 100)
    (snapshot / "a.gguf").symlink_to("../../blobs/one")
    (snapshot / "b.gguf").symlink_to("../../blobs/two")
    other = snapshot.parent / ("b" * 40)
    other.mkdir()
    (other / "b.gguf").symlink_to("../../blobs/two")
    assert told("rm", "hf://org/mine:a.gguf")["freed_bytes"] == 300
    assert not (blobs / "one").exists()
    assert told("rm", "hf://org/mine:b.gguf")["freed_bytes"] == 0
    assert (other / "b.gguf").exists()
    assert (snapshot / "model.safetensors").exists()


def test_catalog_filters_and_shows() -> None:
    names = {
        row["name"] for row in told("catalog", "--fits", "1GB", "--license", "permissive")["models"]
    }
    assert "smollm2:135m" in names
    assert not {"llama3.1:8b", "gemma3:270m"} & names
    row = told("catalog", "--fits", "4GB", "--task", "science")["models"][0]
    assert row["fits_as"] == "F32"
    assert row["good_at"][0]["source"].startswith("https://")
    assert "no model of the catalogue is so" in call("catalog", "--fits", "1kB").stdout
    assert call("catalog", "--fits", "much").exit_code == 2
    assert call("catalog", "--task", "cooking").exit_code == 2
    assert told("catalog", "--task", "Chat") == told("catalog", "--task", "chat")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("4 gib", 4 * 2**30), ("1.5g", 15 * 10**8), ("100", 100), ("2Ti", 2**41)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text, "--fits") == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "1e9", "4 PB", "nan", "4GBs", "9" * 30, "i", "4i"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        parse_size(text, "--fits")


def program_run(
    program: list[str], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        program, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_pull_without_a_network_ends_in_4_within_seconds() -> None:
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    program = [sys.executable, "-m", "miudo", "pull", "smollm2:135m"]
    begin = time.monotonic()
    done = program_run(program, environment)
    assert done.returncode == 4
    assert "cannot reach http://127.0.0.1:9" in done.stderr
    assert time.monotonic() - begin < 30  # a busy machine starts Python slowly
    environment["HF_HUB_OFFLINE"] = "1"
    for extra in ([], ["--offline"]):
        done = program_run([*program, *extra], environment)
        assert done.returncode == 4
        assert "this is offline" in done.stderr


def test_pull_offline_finds_what_is_here(cached: Path) -> None:
    result = call("pull", "gemma2:2b", "--offline")
    assert result.exit_code == 0
    assert "was here" in result.stdout
    assert str(cached) in result.stdout


def test_run_leaves_the_catalogue_alone_for_the_model_inside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It answers in 0.4 s; reading the catalogue would be a tenth of that.
    from miudo.hub import catalogue

    monkeypatch.setattr(catalogue, "load_catalogue", None)
    assert call("run", "hello there", "--max-tokens", "1").exit_code == 0


def test_cp_gives_a_further_name_at_no_cost_and_keeps_the_licence() -> None:
    export(TINY, Path("tiny.gguf"), to="gguf")
    one = Path(told("import", "tiny.gguf", "--name", "one", "--license", "MIT")["path"])
    two = Path(told("cp", "one", "two:kept")["path"])
    assert one.samefile(two)
    rows = {row["name"]: row for row in told("list")["models"]}
    assert rows["two:kept"]["licence"] == "MIT"
    assert call("rm", "one").exit_code == 0
    assert call("show", "two:kept", "--verify").exit_code == 0
    assert "is there already" in call("cp", str(TINY), "two:kept").stderr
    assert call("cp", "one", "three").exit_code == 4
    assert call("cp", "two:kept", "miudo-6m").exit_code == 2
    outside = Path(told("cp", str(TINY), "four")["path"])
    assert not (outside / "config.json").samefile(TINY / "config.json")


def test_a_licence_that_is_none_is_not_taken() -> None:
    result = call("import", str(TINY), "--name", "mine", "--license", "do what you like!")
    assert result.exit_code == 2
    assert "--license: 'do what you like!' is no SPDX expression" in result.stderr
    assert "mine" not in call("list").stdout
    assert (
        call("import", str(TINY), "--name", "mine", "--license", "MIT OR Apache-2.0").exit_code == 0
    )


def test_export_goes_by_the_name_and_replaces_nothing_unasked() -> None:
    assert call("export", str(TINY), "--out", "x.gguf").exit_code == 0
    assert call("export", str(TINY), "--out", "folder").exit_code == 0
    assert Path("folder/config.json").is_file()
    for out in ("x.gguf", "folder"):
        before = [p.stat().st_mtime_ns for p in (Path(out), *Path(out).glob("*"))]
        result = call("export", str(TINY), "--out", out)
        assert result.exit_code == 2
        assert f"{out}: is there already. Give another --out, or --force" in result.stderr
        assert before == [p.stat().st_mtime_ns for p in (Path(out), *Path(out).glob("*"))]
        assert call("export", str(TINY), "--out", out, "--force").exit_code == 0
    result = call("export", "x.gguf", "--out", "x.gguf", "--force")
    assert "would overwrite what it is made from" in result.stderr
    assert call("export", str(TINY), "--out", "y", "--to", "gguf").exit_code == 2


def test_verify_finds_a_file_of_the_store_that_changed() -> None:
    export(TINY, Path("tiny.gguf"), to="gguf")
    path = Path(told("import", "tiny.gguf", "--name", "mine")["path"])
    assert call("show", "mine", "--verify").exit_code == 0
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert call("show", "mine").exit_code == 0
    result = call("show", "mine", "--verify")
    assert result.exit_code == 3
    assert "is not the file of the record: another hash" in result.stderr
