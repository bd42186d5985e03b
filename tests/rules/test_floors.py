"""The floors hold, and no two modules need each other, not even inside a function."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"


def test_every_room_imports_only_from_floors_below() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_import_cycle_counting_imports_inside_functions() -> None:
    graph = {name: imports_of(path, name) for name, path in modules().items()}
    assert len(graph) > 10
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_cycle_check_sees_an_import_inside_a_function(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("def f():\n    from miudo.errors import MiudoError\n")
    assert imports_of(path, "miudo.a") == {"miudo.errors"}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((SOURCE / "miudo").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(path: Path, importer: str) -> set[str]:
    known = modules()
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return {name for name in found if name in known and name != importer}
