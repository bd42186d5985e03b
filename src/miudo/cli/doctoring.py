"""`miudo doctor`: whether miudo works on this machine, and what mends it.

For: printing findings as they come.
Not for: the checks themselves (`miudo.cli.checkups`).
Read next: `miudo.cli.checkups`.
"""

from __future__ import annotations

import dataclasses

import click

from miudo.cli.options import emit, printable, verb

__all__ = ["doctor"]

_MARKS = {"ok": "ok  ", "note": "note", "failed": "FAIL"}


@verb("doctor")
def doctor(*, as_json: bool) -> int:
    """Look at this machine: processor, memory, folders, packages; run the model inside the package.

    Its answer is held against what the decoder in PyTorch gave. What is wrong comes with the
    command that mends it; exit code 3 says that something is.
    """
    from miudo.cli.checkups import CHECKUPS, Finding

    found: list[Finding] = []
    for look in CHECKUPS:
        for finding in look():
            found.append(finding)
            if not as_json:
                _print(finding.part, finding.state, finding.found, finding.cure)
    failed = sum(finding.state == "failed" for finding in found)
    value = {"schema": 1, "ok": not failed, "findings": [dataclasses.asdict(f) for f in found]}
    last = f"\n{failed} of {len(found)} failed" if failed else "\nmiudo works here"
    emit(value, last, as_json=as_json)
    return 3 if failed else 0


def _print(part: str, state: str, text: str, cure: str | None) -> None:
    click.echo(f"{_MARKS[state]}  {part:<11} {printable(text)}")
    if cure is not None:
        click.echo(f"{'':<17} -> {printable(cure)}")
