"""Prints how many tests were skipped because the shared data folder is absent."""

from __future__ import annotations

import pytest

# The fixture `shared` names this variable in its reason for skipping.
SHARED_VARIABLE = "MIUDO_SHARED"


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
