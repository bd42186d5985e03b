"""The conversation of `miudo run` on a terminal.

For: reading lines, keeping the turns, stopping an answer with Ctrl-C.
Not for: pipes and single answers (`miudo.cli.running`).
Read next: `miudo.cli.answering`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from miudo.cli.answering import answer
from miudo.errors import RequestError
from miudo.protocol import Message
from miudo.text.prompt import prompt_ids

if TYPE_CHECKING:
    from miudo.engine.generate import GenerateSettings
    from miudo.engine.speculate import Speculation
    from miudo.evaluate.loading import LoadedModel

__all__ = ["converse"]

_HELP = "/clear forgets the conversation, /bye or Ctrl-D ends, Ctrl-C stops an answer"


def converse(
    loaded: LoadedModel,
    settings: GenerateSettings,
    *,
    speculation: Speculation | None,
    raw: bool,
    watts: float | None = None,
) -> None:
    """Reads a line, prints the answer, until the user ends it. Turns are kept in a chat."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - importing it gives `input` editing and history

    chat = not raw and loaded.model.chat_template is not None
    kind = "a conversation" if chat else "each line is continued"
    click.secho(f"{loaded.path.name}: {kind}. {_HELP}.", dim=True, err=True)
    messages: list[Message] = []
    while True:
        try:
            line = input(">>> ")
        except (EOFError, KeyboardInterrupt):
            click.echo(err=True)
            return
        if line.strip() == "/bye":
            return
        if line.strip() == "/clear":
            messages.clear()
        elif line.strip():
            _turn(loaded, settings, messages, line, speculation=speculation, raw=raw, watts=watts)


def _turn(
    loaded: LoadedModel,
    settings: GenerateSettings,
    messages: list[Message],
    line: str,
    *,
    speculation: Speculation | None,
    raw: bool,
    watts: float | None,
) -> None:
    messages.append(Message("user", line))
    template = None if raw else loaded.model.chat_template
    try:
        ids = prompt_ids(loaded.tokenizer, messages, loaded.model.config, template=template)
        said = answer(loaded, ids, settings, speculation=speculation, as_json=False, watts=watts)
    except KeyboardInterrupt:
        messages.pop()
        click.secho("\n(stopped)", dim=True, err=True)
    except RequestError as error:
        messages.pop()
        click.echo(f"error: {error}. /clear makes room", err=True)
    else:
        messages.append(Message("assistant", said))
