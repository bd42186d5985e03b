"""Sets up hypothesis, refuses to test a stale install, counts what ran and what did not.

`pytest -m row` runs the bad inputs of docs/bad-input.md; how many of each row is printed last.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import miudo

SOURCE = Path(__file__).resolve().parent / "src" / "miudo"
# The fixture `shared` names this variable in its reason for skipping.
SHARED_VARIABLE = "MIUDO_SHARED"

# A busy machine must not fail a test; in CI the same cases are tried each time.
settings.register_profile(
    "miudo",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
    database=None,
)
settings.load_profile("miudo")


def pytest_configure() -> None:
    """Fails where the installed package is not what `src` holds."""
    tested = Path(miudo.__file__).parent
    differs = [
        path.relative_to(SOURCE).as_posix()
        for path in sorted(SOURCE.rglob("*.py"))
        if tested != SOURCE and not _equal(path, tested / path.relative_to(SOURCE))
    ]
    if differs:
        raise pytest.UsageError(
            f"the installed miudo is older than src: {', '.join(differs[:5])}. Run `make test`, "
            "or put PYTHONPATH=src before a single pytest"
        )


def _equal(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notes for the summary which rows of docs/bad-input.md a test holds."""
    for item in items:
        rows = {name for mark in item.iter_markers("row") for name in mark.args}
        item.user_properties += [("row", name) for name in sorted(rows)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Counts the bad inputs by row; names tests that need shared data and did not run."""
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for kind, name in report.user_properties:
                if kind == "row" and report.when == "call":
                    counts.setdefault(name, Counter())[outcome] += 1
    if counts:
        terminalreporter.section("bad input, tests by row of docs/bad-input.md")
        for name in sorted(counts, key=lambda row: (row[0], int(row[1:]))):
            both = ", ".join(f"{n} {outcome}" for outcome, n in counts[name].items())
            terminalreporter.line(f"{name:<4} {both}")
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if SHARED_VARIABLE in str(report.longrepr)
    ]
    if skipped:
        terminalreporter.section("shared data absent")
        for report in skipped:
            terminalreporter.line(f"not run: {report.nodeid}")
    terminalreporter.line(f"skipped for want of shared data: {len(skipped)}")
