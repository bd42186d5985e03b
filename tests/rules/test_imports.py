"""What importing costs: no torch where none is needed, and few modules for `--help`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"

# `import miudo` runs one small file. Some modules come with typing, none from elsewhere.
PACKAGE_BUDGET = 3
# `miudo --help` must answer within 0.3 s on a slow machine. It takes 81 modules: click, what
# click needs of the standard library, and three of ours; NumPy alone would be 150 more.
HELP_BUDGET = 110
# What only the extra `make` installs; the device runtime has to live without it.
MAKE_ONLY = ("torch", "safetensors", "pyarrow", "datasketch", "matplotlib", "transformers")
# The rooms that are about PyTorch.
TORCH_ROOMS = ("decoder", "train", "compress", "shrink")

BLOCKER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked by this test", name=name)
sys.meta_path.insert(0, Blocked())
"""


WATCHER = """
import sys
def watch(event, arguments):
    writes = event == "open" and set(str(arguments[1] or "r")) & set("wax+")
    starts = event.startswith(("socket.connect", "subprocess.", "os.system", "os.exec", "os.fork"))
    if writes or starts:
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(watch)
"""


def loaded_by(code: str) -> set[str]:
    """Modules that `code` loads in a fresh interpreter, beyond those it starts with."""
    program = (
        f"import sys, json\nbefore = set(sys.modules)\n{code}\n"
        "print(chr(10) + json.dumps(sorted(set(sys.modules) - before)))"
    )
    return set(json.loads(run(program).splitlines()[-1]))


def run(program: str) -> str:
    command = [sys.executable, "-B", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_importing_the_package_loads_almost_nothing() -> None:
    loaded = loaded_by("import miudo")
    assert "miudo" in loaded
    assert len(loaded) <= PACKAGE_BUDGET, sorted(loaded)


def test_help_loads_no_torch_no_numpy_and_few_modules() -> None:
    code = (
        "from miudo.cli.main import main\nsys.argv = ['miudo', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )
    loaded = loaded_by(code)
    assert "click" in loaded
    tops = {name.partition(".")[0] for name in loaded}
    assert not tops & {*MAKE_ONLY, "numpy", "tokenizers", "jinja2"}
    assert len(loaded) <= HELP_BUDGET, (len(loaded), sorted(loaded))


def base_modules() -> list[str]:
    names = []
    for path in sorted((SOURCE / "miudo").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[1] not in TORCH_ROOMS and parts[-1] != "__main__":
            names.append(".".join(parts).removesuffix(".__init__"))
    return names


def test_every_module_outside_the_torch_rooms_imports_without_the_make_extra() -> None:
    names = base_modules()
    assert len(names) > 12
    run(BLOCKER.format(blocked=MAKE_ONLY) + "".join(f"import {name}\n" for name in names))


def test_the_blocker_blocks() -> None:
    with pytest.raises(AssertionError, match="blocked by this test"):
        run(BLOCKER.format(blocked=MAKE_ONLY) + "import torch\n")


def test_importing_writes_nothing_starts_nothing_and_reaches_no_network() -> None:
    run(WATCHER + "".join(f"import {name}\n" for name in base_modules()))


def test_the_watcher_sees_a_write() -> None:
    with pytest.raises(AssertionError, match="open"):
        run(WATCHER + "open('/dev/null', 'w')")
