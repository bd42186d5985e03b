"""Sets up hypothesis, refuses to test a stale install, counts what shared data would have run."""

from __future__ import annotations

import os
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names the tests that need the shared data folder and did not run."""
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
