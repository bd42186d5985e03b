"""Writes constraints.txt: the versions in this environment of all that `make` installs.

Run it in an environment where `make test-all` has passed: `.venv/bin/python scripts/lock.py`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# Exact versions of everything that `make` installs, builds with and tests with.
# Written by scripts/lock.py from an environment that passed the tests; see CONTRIBUTING.md.
"""


def main() -> None:
    """Writes the file; fails if a named package is not installed."""
    versions = closure([Requirement(text) for text in wanted()])
    lines = [f"{name}=={version}" for name, version in sorted(versions.items())]
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} packages", file=sys.stderr)


def wanted() -> list[str]:
    """Returns every requirement that pyproject.toml names, and pip."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    groups = project["dependency-groups"].values()
    return [
        "pip",
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["make"],
        *(entry for group in groups for entry in group if isinstance(entry, str)),
    ]


def closure(todo: list[Requirement]) -> dict[str, str]:
    """Returns the version of each requirement and of all that they require in turn."""
    found: dict[str, str] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        extras = frozenset(requirement.extras)
        if (name, extras) in done:
            continue
        done.add((name, extras))
        distribution = metadata.distribution(requirement.name)
        # A local label (2.13.0+cpu) names one build; the version holds for all of them.
        found[name] = distribution.version.partition("+")[0]
        for text in distribution.requires or ():
            child = Requirement(text)
            if child.marker is None or any(
                child.marker.evaluate({"extra": extra}) for extra in extras | {""}
            ):
                todo.append(child)
    return found


if __name__ == "__main__":
    main()
