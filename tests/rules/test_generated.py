"""What is generated is current: help pages, tables, reading order; and every preset is sound."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from miudo.config import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted((ROOT / "src" / "miudo" / "presets").glob("*.json"))
# Prose that a reader opens first; it must not promise files that are not there.
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize(
    "script", ["block_types", "cli_reference", "preset_table", "reading_order", "zoo_table"]
)
def test_generated_text_is_current(script: str) -> None:
    command = [sys.executable, ROOT / "scripts" / f"{script}.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_presets() -> None:
    assert len(PRESETS) >= 5


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_round_trips(path: Path) -> None:
    config = ModelConfig.from_json(json.loads(path.read_text(encoding="utf-8")))
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_named_files_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    for link in links:
        assert (path.parent / link).exists(), link
    for name in re.findall(r"`((?:src|native|scripts|tests|docs|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_readme_opens_with_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL)
    assert block is not None
    commands = [line.partition("#")[0].strip() for line in block[1].splitlines()]
    assert commands == ["make demo", "make test"]
    assert text.index("```") < 600


def test_every_verb_in_the_pages_exists() -> None:
    from miudo.cli.main import VERBS

    blocks = [
        block
        for path in PAGES
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", path.read_text("utf-8"), re.DOTALL)
    ]
    named = set(re.findall(r"^(?:.*\| )?(?:\S*/)?miudo ([a-z]+)", "".join(blocks), re.MULTILINE))
    assert named
    assert named <= VERBS.keys()


def test_every_row_of_bad_input_has_its_tests_and_every_mark_its_row() -> None:
    page = (ROOT / "docs" / "bad-input.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([LJNEH]\d+) \|", page, re.MULTILINE)
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    tests.append((ROOT / "native" / "test" / "memory_test.cc").read_text(encoding="utf-8"))
    assert len(rows) == len(set(rows)) > 30
    assert set(rows) == {row for text in tests for row in re.findall(r'"([LJNEH]\d+)"', text)}
