"""The rules of the house that a reader of one file can't see: names, sizes, dangerous calls."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "miudo"

MODULE_LINES = 450
FUNCTION_LINES = 80
NATIVE_LINES = 600

# Files that write without `miudo.files`, each for a reason; the durable write stays there.
WRITERS: dict[str, str] = {
    "files.py": "the one place for durable writes",
    "formats/hf.py": "fills a folder that miudo.files makes whole or not at all",
    "formats/hf_text.py": "fills a folder that miudo.files makes whole or not at all",
    "formats/peft.py": "fills a folder that miudo.files makes whole or not at all",
    "data/ledger.py": "appends a line a result, synced; a torn last line is cut off on resume",
    "hub/download.py": "appends to what came so far; it takes its name only with the right hash",
    "train/metrics.py": "appends a line a step; a torn last line is cut off on resume",
    "train/run_folder.py": "holds the lock file of a run open",
    "report.py": "draws into files that miudo.files opened, and into memory",
}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "torch.load", "np.load", "numpy.load"}
WRITING_METHODS = {"write_text", "write_bytes", "savefig", "tofile"}

SOURCES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in SOURCES]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.fixture(params=SOURCES, ids=NAMES)
def source(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_all_lists_the_public_names_and_nothing_else(source: Path) -> None:
    tree = tree_of(source)
    listed = exported(tree)
    expected = public_names(tree)
    if source.name == "__init__.py":
        # A package may hand on names of its modules, and its version.
        expected |= set(listed) & imported_names(tree)
        expected |= {name for name in listed if name.startswith("__")}
    assert sorted(listed) == sorted(expected)


def test_a_module_says_what_it_is_for_what_not_and_what_to_read_next(source: Path) -> None:
    text = ast.get_docstring(tree_of(source)) or ""
    assert text, "no module docstring"
    if source.name not in ("__init__.py", "__main__.py"):
        assert len(text.splitlines()) >= 4, "the module docstring has five lines"
        assert "For:" in text
        assert "Not for:" in text
        assert "Read next:" in text


def test_public_functions_and_classes_are_documented(source: Path) -> None:
    bare = [
        node.name
        for node in tree_of(source).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not bare


def test_modules_and_functions_keep_to_their_size(source: Path) -> None:
    assert len(source.read_text(encoding="utf-8").splitlines()) <= MODULE_LINES
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES, f"{node.name} has {lines} lines"


def test_no_dangerous_calls_and_no_write_around_files(source: Path) -> None:
    name = source.relative_to(PACKAGE).as_posix()
    found = list(unsafe(tree_of(source)))
    if name in WRITERS:
        found = [what for what in found if not what[1].startswith("writes")]
    assert not found, found


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import pickle", "imports pickle"),
        ("from pickle import loads", "imports pickle"),
        ("eval('1')", "calls eval"),
        ("import torch\ntorch.load('x')", "calls torch.load"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "shell=True"),
        ("open('x', 'w')", "writes"),
        ("open('x', mode='ab')", "writes"),
        ("p.open('r+b')", "writes"),
        ("p.write_text('x')", "writes"),
    ],
)
def test_the_check_for_dangerous_calls_finds_them(code: str, what: str) -> None:
    assert [text for _, text in unsafe(ast.parse(code)) if what in text]


def test_the_check_for_dangerous_calls_lets_reading_pass() -> None:
    code = "open('x')\nopen('x', 'rb')\np.open(encoding='utf-8')\nx.eval()\nz = 'eval'"
    assert not list(unsafe(ast.parse(code)))


def test_exceptions_to_the_write_rule_are_still_needed() -> None:
    for name in WRITERS:
        assert any(what.startswith("writes") for _, what in unsafe(tree_of(PACKAGE / name))), name


def test_native_sources_keep_to_their_size() -> None:
    for path in sorted((ROOT / "native").rglob("*")):
        if path.suffix in (".cc", ".cpp", ".h", ".hpp", ".c"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= NATIVE_LINES, path.name


def test_the_repository_names_no_machine_and_no_registry() -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git repository")
    # Spelled in parts, so that this file does not name them either.
    folders = "|".join(("work", "root", "opt", "home"))
    hosts = "|".join(("pypi" + r"\.org", "python" + r"hosted\.org", "registry" + r"\.npmjs"))
    pattern = re.compile(rf"(?<![\w./~-])/(?:{folders})/\w|{hosts}")
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if path.suffix in (".safetensors", ".gguf", ".png", ".gz", ".xz", ".parquet"):
            continue
        if path.is_file():
            match = pattern.search(path.read_text(encoding="utf-8", errors="replace"))
            assert not match, f"{name}: {match.group() if match else ''}"


def exported(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def public_names(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign) and not makes_type_variable(node):
            for target in node.targets:
                names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def makes_type_variable(node: ast.Assign) -> bool:
    """Type variables must stand at the top of a module, and no other module needs them."""
    return isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "TypeVar"


def imported_names(tree: ast.Module) -> set[str]:
    return {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("miudo")
        for alias in node.names
    }


def unsafe(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names.append(getattr(node, "module", None) or "")
            for name in names:
                if name.partition(".")[0] in UNSAFE_MODULES:
                    yield node.lineno, f"imports {name}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in UNSAFE_CALLS:
                yield node.lineno, f"calls {called}"
            for keyword in node.keywords:
                if keyword.arg == "shell" and ast.unparse(keyword.value) != "False":
                    yield node.lineno, "shell=True"
            if writes(node, called):
                yield node.lineno, f"writes with {called}"


def writes(node: ast.Call, called: str) -> bool:
    method = called.rpartition(".")[2]
    if method in WRITING_METHODS:
        return True
    if method not in ("open", "fdopen") or called == "os.open":
        return False
    place = 0 if isinstance(node.func, ast.Attribute) and called != "os.fdopen" else 1
    modes = [k.value for k in node.keywords if k.arg == "mode"] + node.args[place : place + 1]
    return any(
        isinstance(mode, ast.Constant)
        and isinstance(mode.value, str)
        and re.fullmatch(r"[rwxabt+]+", mode.value) is not None
        and bool(set(mode.value) & set("wxa+"))
        for mode in modes
    )
