"""Writes docs/cli.md from the live command line: what each verb's --help prints."""

from __future__ import annotations

import re

import click
from generated import ROOT, keep

from miudo.cli.main import cli

HEAD = """\
# The command line

Written by `scripts/cli_reference.py` from the program itself; `make docs` writes it anew.

Results go to standard output, progress and messages to standard error. Exit codes: 0 ok,
1 failure, 2 usage, 3 a check failed, 4 not found or offline, 5 too little memory or disk,
130 interrupted.
"""


def main() -> None:
    """Writes the page, or with --check compares it."""
    top = click.Context(cli, info_name="miudo", terminal_width=88)
    parts = [HEAD, section("miudo", cli, top)]
    for name in cli.list_commands(top):
        command = cli.get_command(top, name)
        if command is None:
            raise KeyError(name)
        context = click.Context(command, info_name=name, parent=top, terminal_width=88)
        parts.append(section(f"miudo {name}", command, context))
        for under, each in getattr(command, "commands", {}).items():
            inner = click.Context(each, info_name=under, parent=context, terminal_width=88)
            parts.append(section(f"miudo {name} {under}", each, inner))
    keep(ROOT / "docs" / "cli.md", "\n".join(parts))


def section(title: str, command: click.Command, context: click.Context) -> str:
    """Returns one verb's heading and help."""
    text = re.sub(r"[ \t]+$", "", command.get_help(context), flags=re.MULTILINE)
    return f"## {title}\n\n```text\n{text}\n```\n"


if __name__ == "__main__":
    main()
