"""`miudo config show`: every setting, its value, and where that comes from.

For: a user who wonders why a verb does what it does.
Not for: changing settings: the user's own file is edited by hand.
Read next: `miudo.cli.options`, which says what wins over what.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import click

from miudo.cli.options import Verb, emit, origins, own_file, printable, verb
from miudo.cli.variables import SECRET, VARIABLES
from miudo.errors import UsageError

__all__ = ["config"]


@verb("config", takes_settings=True)
@click.argument("action", type=click.Choice(["show"]))
@click.argument("line", nargs=-1, type=click.UNPROCESSED, metavar="[VERB] [ARGUMENTS]...")
@click.option("--origin/--no-origin", default=True, help="Whether to say where a value is from.")
def config(
    action: str,
    line: tuple[str, ...],
    *,
    origin: bool,
    as_json: bool,
    extra: Mapping[str, Any],
) -> None:
    """Show every setting of VERB as it would be with ARGUMENTS, and where each value comes from.

    Flags win over variables of the environment, these over --set, --set over the file of --config,
    that over your own file, and that over defaults. Your own file is ~/.config/miudo/config.toml, a
    table for each verb: [run] and temperature = 0.2 below it. ARGUMENTS stand behind --, as in
    miudo config show run -- --seed 3. Without VERB: the variables and your own file.
    """
    if extra:
        raise UsageError(
            f"{next(iter(extra))!r} is no setting of config",
            remedy="Write the verb's arguments behind --: miudo config show run -- --set seed=3",
        )
    rows = _of_verb(line) if line else _of_machine()
    widest = max((len(row["name"]) for row in rows), default=0)
    lines = []
    for row in rows:
        value = "" if row["value"] is None else str(row["value"])
        lines.append(f"{row['name']:<{widest}}  {value:<24}  {row['from'] if origin else ''}")
    text = "\n".join(text.rstrip() for text in lines)
    emit({"schema": 1, "settings": rows}, printable(text), as_json=as_json)


def _of_machine() -> list[dict[str, Any]]:
    rows = [_row("your own file", None if (own := own_file()) is None else str(own), "")]
    for name, text in VARIABLES.items():
        value = os.environ.get(name)
        shown = "(set)" if value and name in SECRET else value
        rows.append(_row(name, shown, text if value is None else f"environment: {text}"))
    return rows


def _of_verb(line: tuple[str, ...]) -> list[dict[str, Any]]:
    root = click.get_current_context().find_root()
    group = root.command
    name, arguments = line[0], list(line[1:])
    command = group.get_command(root, name) if isinstance(group, click.Group) else None
    if not isinstance(command, Verb):
        raise UsageError(f"no verb is called {name!r}", remedy="See `miudo --help`")
    whole = copy.copy(command)
    whole.params = [_optional(option) for option in command.params]
    # A context of its own: what was given to `config` is not given to the verb.
    context = whole.make_context(command.name, arguments, parent=click.Context(group))
    found = origins(context)
    return [
        _row(name, _plain(context.params.get(name)), found[name])
        for name in found
        if name != "as_json"
    ]


def _optional(option: click.Parameter) -> click.Parameter:
    made = copy.copy(option)
    made.required = False
    return made


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else str(value)


def _row(name: str, value: Any, origin: str) -> dict[str, Any]:
    return {"name": name, "value": value, "from": origin}
