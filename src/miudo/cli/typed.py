"""What a user types into a conversation: lines, texts of several lines, and their history.

For: `>>> ` with editing, a trailing backslash, three quotes, and a private file of what was typed.
Not for: what becomes of it (`miudo.cli.conversing`).
Read next: `miudo.cli.commands`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from miudo.cli.options import aside
from miudo.hub.folders import private_folder, state_folder

__all__ = ["Typed", "TypedTexts", "history_file"]

_QUOTES = '"""'
_KEPT_LINES = 1000


@dataclass(frozen=True, slots=True)
class Typed:
    """A text; `quoted` ones are never commands."""

    text: str
    quoted: bool = False


class TypedTexts:
    """Reads texts from a terminal, with line editing where the system has readline.

    `history` is the file that lines are kept in, None for none; `words` are offered on Tab at the
    beginning of a line.
    """

    def __init__(self, history: Path | None = None, words: Sequence[str] = ()) -> None:
        self._history = history
        self._words = words
        with contextlib.suppress(ImportError):
            self._edit()

    def read(self) -> Typed | None:
        """Returns the next text, None where there are no more (Ctrl-D)."""
        try:
            line = self._line(">>> ")
            if line.lstrip().startswith(_QUOTES):
                return Typed(self._quoted(line.lstrip().removeprefix(_QUOTES)), quoted=True)
            if not line.endswith("\\"):
                return Typed(line)
            lines = [line]
            while lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1]
                lines.append(self._line("... "))
            return Typed("\n".join(lines), quoted=True)
        except EOFError:
            click.echo(err=True)
            return None

    def _quoted(self, line: str) -> str:
        lines = [line]
        while not lines[-1].rstrip().endswith(_QUOTES):
            lines.append(self._line("... "))
        lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
        return "\n".join(lines).strip("\n")

    def _line(self, mark: str) -> str:
        if sys.stdout.isatty():
            line = input(mark)
        else:  # the answers go to a file or a program: the mark is not for them
            click.echo(mark, nl=False, err=True)
            line = input()
        self._keep(line)
        return line

    def _edit(self) -> None:
        import readline

        if self._history is not None:
            try:
                private_folder(self._history.parent)
                # Made here: whoever appends to it later leaves the mode as it is.
                os.close(os.open(self._history, os.O_CREAT | os.O_WRONLY, 0o600))
                readline.read_history_file(self._history)
                readline.set_history_length(_KEPT_LINES)
            except OSError as error:
                aside(f"no history: {self._history}: {error.strerror}")
                self._history = None
        readline.set_completer_delims("")
        readline.set_completer(self._offered)
        readline.parse_and_bind("tab: complete")

    def _offered(self, begun: str, place: int) -> str | None:
        found = [word for word in self._words if begun and word.startswith(begun)]
        return found[place] if place < len(found) else None

    def _keep(self, line: str) -> None:
        """Appends at once, so that a terminal that is closed loses nothing."""
        if self._history is not None and line.strip():
            with contextlib.suppress(ImportError, AttributeError, OSError):
                import readline

                readline.append_history_file(1, self._history)


def history_file() -> Path:
    """Returns where what is typed is kept."""
    return state_folder() / "history"
