"""The turns of a conversation with one model.

For: keeping what was said, asking again, an answer that was stopped.
Not for: reading what is typed (`miudo.cli.conversing`).
Read next: `miudo.cli.answering`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from miudo.cli.answering import AnswerStopped, answer
from miudo.cli.options import aside
from miudo.cli.talk import Talk
from miudo.errors import RequestError, TokenizerError
from miudo.protocol import Message

__all__ = ["Conversation"]


class Conversation:
    """Turns with one model. Without a chat template each text is continued by itself.

    `messages` hold every turn, a system message first. `file` is where they were saved or loaded.
    """

    def __init__(self, talk: Talk, system: str | None = None) -> None:
        self.talk = talk
        self.messages: list[Message] = []
        self.file: Path | None = None
        self.ended = False
        self.system = system

    @property
    def system(self) -> str | None:
        """What the model is told before the first turn, None for nothing."""
        first = self.messages[:1]
        return first[0].content if first and first[0].role == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        turns = self.messages[0 if self.system is None else 1 :]
        self.messages = [*([] if text is None else [Message("system", text)]), *turns]

    def say(self, text: str) -> None:
        """Prints the answer to `text` and keeps both; after an error neither."""
        before = [] if self.talk.template is None else self.messages
        self._answer([*before, Message("user", text)])

    def retry(self) -> None:
        """Answers the last text once more, with other draws. Raises RequestError without one."""
        asked = self.messages[:-1] if self.messages[-1:] and self._answered() else self.messages
        if not asked or asked[-1].role != "user":
            raise RequestError("nothing was asked yet", remedy="Type a text first")
        settings = self.talk.settings
        sampling = replace(settings.sampling, request=settings.sampling.request + 1)
        self.talk = replace(self.talk, settings=replace(settings, sampling=sampling))
        if not sampling.temperature:
            aside("the temperature is 0, so the answer will be the same: /set temperature 0.7")
        self._answer(asked)

    def clear(self) -> None:
        """Forgets all turns; what the model is told before them stays."""
        system, self.messages = self.system, []
        self.system = system

    def _answered(self) -> bool:
        return self.messages[-1].role == "assistant"

    def _answer(self, asked: Sequence[Message]) -> None:
        try:
            said = answer(self.talk, self.talk.ids(asked))
        except AnswerStopped as stop:
            click.echo()
            aside("stopped; /retry asks again" if stop.said else "stopped before it began")
            said = stop.said
        except RequestError as error:
            cure = "" if self.talk.template is None else ". /clear makes room"
            click.echo(f"error: {error}{cure if 'prompt has' in error.what else ''}", err=True)
            return
        except TokenizerError as error:
            click.echo(f"error: {error}", err=True)
            return
        self.messages = [*asked, *([Message("assistant", said)] if said else [])]
