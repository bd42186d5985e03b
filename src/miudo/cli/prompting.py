"""Which of a command line's words are the model and the prompt, and what is piped in.

For: `run`, `chat`, `complete` and `tokenize`, which read their words alike.
Not for: what is typed into a conversation (`miudo.cli.typed`).
Read next: `miudo.cli.running`.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Sequence
from typing import IO

import click

from miudo.errors import RequestError, UsageError

__all__ = ["choose", "prompt_text"]

_PATIENCE_S = 3.0
_MOST_BYTES = 64 << 20


def choose(arguments: Sequence[str], prompt: str | None) -> tuple[str | None, str | None]:
    """Returns (model, prompt) of the command line; None is the embedded model, or no prompt.

    Raises UsageError for more than a model and a prompt.
    """
    wanted = 1 if prompt is not None else 2
    if len(arguments) > wanted:
        raise UsageError(
            f"{len(arguments)} arguments are too many", remedy="Put the prompt in quotes"
        )
    if len(arguments) == 2:
        return arguments[0], arguments[1]
    if not arguments:
        return None, prompt
    (only,) = arguments
    if prompt is None and (only == "-" or _is_prompt(only)):
        return None, only
    return only, prompt


def prompt_text(given: str | None, *, exact: bool) -> str | None:
    """Returns the prompt, None where none is given and a user sits at the terminal.

    What is piped in is the prompt where `given` is None or -, else it comes before `given`, an
    empty line between them. `exact` keeps the end of its last line, which `echo` and editors add.
    Raises RequestError for a pipe that is not UTF-8 or beyond 64 MiB.
    """
    source = sys.stdin
    on_terminal = source is not None and source.isatty()
    if given is None and on_terminal:
        return None
    if given in (None, "-"):
        return _piped(source, exact=exact)
    piped = "" if on_terminal or not _holds_text(source) else _piped(source, exact=False)
    return f"{piped}\n\n{given}" if piped.strip() else given


def _piped(source: IO[str] | None, *, exact: bool) -> str:
    if source is None:  # closed by whoever started us
        return ""
    if not source.isatty() and not _ready(source):
        click.echo("waiting for text on standard input", err=True)
    content = source.buffer.read(_MOST_BYTES + 1)  # type: ignore[attr-defined]
    if len(content) > _MOST_BYTES:
        raise RequestError(
            f"more than {_MOST_BYTES >> 20} MiB", where="standard input", remedy="Give less text"
        )
    try:
        text: str = content.decode()
    except UnicodeDecodeError as error:
        raise RequestError(
            f"is not UTF-8 ({error.reason} at byte {error.start})",
            where="standard input",
            remedy="Convert it: iconv -t UTF-8",
        ) from error
    return text if exact else text.removesuffix("\n")


def _holds_text(source: IO[str] | None) -> bool:
    """Whether standard input is a pipe or a file: a device or a socket was not meant for us."""
    if source is None:
        return False
    try:
        mode = os.fstat(source.fileno()).st_mode
    except OSError:  # text in memory
        return True
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _ready(source: IO[str]) -> bool:
    try:
        return bool(select.select([source], [], [], _PATIENCE_S)[0])
    except (OSError, ValueError):  # text in memory
        return True


def _is_prompt(text: str) -> bool:
    # No name has a mark of speech: "Hello!" is meant for the model, not the model.
    said = any(c.isspace() or c in "!?" for c in text)
    return said and not os.path.exists(text)
