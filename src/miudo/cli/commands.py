"""What a user may do in a conversation besides talking: `/help` and its like.

For: one table of commands, each a function of the conversation and the words after its name.
Not for: the turns themselves (`miudo.cli.turns`).
Read next: `miudo.cli.first_screen`, which `/show` prints.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.options import aside, printable
from miudo.errors import RequestError, UsageError

if TYPE_CHECKING:
    from miudo.cli.talk import Talk
    from miudo.cli.turns import Conversation

__all__ = ["COMMANDS", "command"]

_NOT_SET = ("eos_ids", "adapter", "sampling", "logit_bias", "request")
_MOST_BYTES = 64 << 20


def command(line: str) -> Callable[[Conversation], None] | None:
    """Returns what `line` asks to be done, None for a text to be answered.

    Raises UsageError for a command that there is not. A path is a text: its first word goes on
    after the letters.
    """
    match = re.fullmatch(r"\s*/([a-z]+|\?)(?:\s+(.*?))?\s*", line, re.DOTALL)
    if match is None:
        return None
    name, words = match[1], match[2] or ""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        cure = f"Did you mean /{near[0]}?" if near else "See /help"
        raise UsageError(f"no command is called /{name}", remedy=cure)
    _, takes, action = COMMANDS[name]
    if words and not takes:
        raise UsageError(f"/{name} takes nothing, {words[:40]!r} follows", remedy="Leave it out")
    return lambda conversation: action(conversation, words)


def _help(conversation: Conversation, words: str) -> None:
    for name, (text, takes, _) in COMMANDS.items():
        click.echo(f"  {f'/{name} {takes}':<22} {text}", err=True)
    click.echo('  """                    Begins and ends a text of several lines', err=True)
    click.echo("  \\ at a line's end      The text goes on in the next line", err=True)
    click.echo("  Ctrl-C                 Stops the answer;  Ctrl-D leaves", err=True)


def _clear(conversation: Conversation, words: str) -> None:
    conversation.clear()
    aside("forgotten")


def _system(conversation: Conversation, words: str) -> None:
    if not words:
        aside(printable(conversation.system or "nothing is told before the first turn"))
        return
    _need_template(conversation.talk, "/system")
    conversation.system = None if words == "none" else words
    aside("told nothing before the first turn" if words == "none" else "told so from now on")


def _need_template(talk: Talk, what: str) -> None:
    if talk.template is None:
        raise UsageError(
            f"{what} needs a chat template, and the model has none",
            remedy="Start with --chat-template, such as chatml",
        )


def _set(conversation: Conversation, words: str) -> None:
    from miudo.cli.settings import check_keys, make_settings, parse_assignment

    values = _settings_values(conversation.talk)
    name, _, value = words.replace("=", " ", 1).partition(" ")
    name = name.replace("-", "_")
    if not words:
        for key, held in values.items():
            click.echo(f"  {key:<20} {json.dumps(held, ensure_ascii=False)}", err=True)
        return
    check_keys([name], values, where="/set")
    if not value.strip():
        raise UsageError(f"/set {name} gives no value", remedy=f"Write /set {name} VALUE")
    given = parse_assignment(f"{name}={value.strip()}")[name]
    talk, settings = conversation.talk, conversation.talk.settings
    if name == "timings":
        if given not in (True, False, "on", "off"):
            raise UsageError(f"timings is {given!r}", remedy="Write on or off")
        conversation.talk = dataclasses.replace(talk, timings=given in (True, "on"))
        return
    if name == "stop" and isinstance(given, str):
        given = [given]
    whole = settings.sampling if name not in _fields(settings) else settings
    checked = make_settings(type(whole), {name: given}, where="/set")
    new: Any = dataclasses.replace(whole, **{name: getattr(checked, name)})
    if whole is settings.sampling:
        new = dataclasses.replace(settings, sampling=new)
    conversation.talk = dataclasses.replace(talk, settings=new)


def _settings_values(talk: Talk) -> dict[str, Any]:
    """Returns what `/set` may set, by name."""
    settings = talk.settings
    found = {**_fields(settings), **_fields(settings.sampling)}
    return {**found, "timings": talk.timings is not False}


def _fields(settings: Any) -> dict[str, Any]:
    fields = [field.name for field in dataclasses.fields(settings)]
    return {name: getattr(settings, name) for name in fields if name not in _NOT_SET}


def _show(conversation: Conversation, words: str) -> None:
    from miudo.cli.first_screen import facts, facts_text

    talk = conversation.talk
    if words in ("", "model"):
        click.echo(printable(facts_text(facts(talk))), err=True)
    elif words == "template":
        click.echo(printable(talk.template or talk.template_from), err=True)
    elif words == "chat":
        for message in conversation.messages:
            click.echo(printable(f"{message.role}: {message.content}"), err=True)
    elif words == "settings":
        _set(conversation, "")
    else:
        raise UsageError(
            f"/show {words[:40]!r} shows nothing",
            remedy="Write /show, /show template, /show chat or /show settings",
        )


def _save(conversation: Conversation, words: str) -> None:
    from miudo.files import atomic_write, check_output

    path = Path(words).expanduser() if words else conversation.file
    if path is None:
        raise UsageError("/save names no file", remedy="Write /save FILE.json")
    if not conversation.messages:
        raise RequestError("nothing was said yet", remedy="Talk first")
    if path.exists() and path != conversation.file:
        raise UsageError("is there already", where=path, remedy="Give another name")
    check_output(path)
    messages = [dataclasses.asdict(message) for message in conversation.messages]
    # One line of what `miudo finetune --data` reads.
    line = (json.dumps({"messages": messages}, ensure_ascii=False) + "\n").encode(
        "utf-8", "replace"
    )
    atomic_write(path, lambda file: file.write(line))
    conversation.file = path
    aside(f"{len(messages)} messages in {path}; /load {words or path} goes on from there")


def _load(conversation: Conversation, words: str) -> None:
    from miudo.errors import DataError
    from miudo.files import open_regular
    from miudo.text.chat import parse_messages

    if not words:
        raise UsageError("/load names no file", remedy="Write /load FILE.json")
    _need_template(conversation.talk, "/load")
    path = Path(words).expanduser()
    with open_regular(path, DataError) as file:
        text = file.read(_MOST_BYTES)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"is no JSON of one conversation ({error})", where=path, remedy="Load what /save wrote"
        ) from error
    messages = value.get("messages") if isinstance(value, dict) else None
    try:
        conversation.messages = parse_messages(messages)
    except RequestError as error:
        raise DataError(error.what, where=path, remedy="Load what /save wrote") from error
    conversation.file = path
    aside(f"{len(conversation.messages)} messages of {path}")


def _retry(conversation: Conversation, words: str) -> None:
    conversation.retry()


def _bye(conversation: Conversation, words: str) -> None:
    conversation.ended = True


COMMANDS: dict[str, tuple[str, str, Callable[[Conversation, str], None]]] = {
    "help": ("What there is to do here", "", _help),
    "clear": ("Forget the conversation", "", _clear),
    "system": ("What the model is told before it all; none takes it back", "[TEXT]", _system),
    "set": ("Change a setting, or show them all", "[NAME VALUE]", _set),
    "show": ("The model; or its template, the chat, the settings", "[WHAT]", _show),
    "save": ("Write the conversation to a file", "[FILE]", _save),
    "load": ("Go on from a conversation that was saved", "FILE", _load),
    "retry": ("Answer the last text again", "", _retry),
    "bye": ("Leave", "", _bye),
}
"""Name to (what it does, what it takes, the function)."""
