"""The conversation of `miudo run`, `chat` and `complete` on a terminal.

For: the loop from what is typed to what is done about it.
Not for: pipes and single answers (`miudo.cli.running`).
Read next: `miudo.cli.typed`, `miudo.cli.turns`; `miudo.cli.commands` for what begins with /.
"""

from __future__ import annotations

from pathlib import Path

import click

from miudo.cli.commands import COMMANDS, command
from miudo.cli.options import aside
from miudo.cli.talk import Talk
from miudo.cli.turns import Conversation
from miudo.cli.typed import TypedTexts
from miudo.errors import MiudoError

__all__ = ["converse"]

_LEAVING = "Ctrl-D or /bye leaves"


def converse(talk: Talk, *, system: str | None, history: Path | None) -> None:
    """Reads a text, prints the answer, until the user leaves.

    `history` is the file that keeps what was typed, None for none.
    """
    words = [f"/{name} " if takes else f"/{name}" for name, (_, takes, _) in COMMANDS.items()]
    typed = TypedTexts(history, words)
    conversation = Conversation(talk, system)
    while not conversation.ended:
        try:
            given = typed.read()
            if given is None:
                return
            if not given.quoted and (found := command(given.text)) is not None:
                found(conversation)
            elif given.text.strip():
                conversation.say(given.text)
        except KeyboardInterrupt:  # at the mark: what was typed is dropped
            click.echo(err=True)
            aside(_LEAVING)
        except UnicodeDecodeError:
            click.echo("error: what was typed is not UTF-8", err=True)
        except (MiudoError, OSError) as error:
            click.echo(f"error: {error}", err=True)
