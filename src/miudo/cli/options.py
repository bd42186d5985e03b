"""What every verb shares: `--json`, `--config`, `--set`, and how results are printed.

For: one meaning of these three on all verbs. Flags win over variables of the environment, these
over `--set`, `--set` over the file of `--config`, and that over the user's own file.
Not for: the options of one verb.
Read next: `miudo.cli.settings`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miudo.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = [
    "BLOCK_TYPES",
    "Verb",
    "aside",
    "cache_type_option",
    "complete_model",
    "duration",
    "emit",
    "origins",
    "own_file",
    "parse_size",
    "printable",
    "verb",
    "watts_option",
]

BLOCK_TYPES = (
    "Q8_0", "Q6_K", "Q5_1", "Q5_K", "Q5_0", "Q4_1", "Q4_K", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K",
    "Q2_K", "TQ2_0", "TQ1_0",
)  # fmt: skip
"""Types of blocks that `miudo.formats.blocks` writes, largest first; named here so that help
needs no NumPy."""

_GIVEN = "miudo.given"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip

watts_option = click.option(
    "--watts",
    type=click.FloatRange(0, min_open=True),
    help="What a busy core draws, for an estimate of energy where no counter is readable."
    "  [default: 8]",
)

cache_type_option = click.option(
    "--cache-type",
    type=click.Choice(["f32", "f16", "bf16", "int8", "int4"]),
    help="What keys and values are rounded to.  [default: f16; f32 with float activations]",
)


class Verb(click.Command):
    """A command whose options may come from a file or `--set` too.

    Keys that are no option of the verb reach its function as the mapping `extra` when
    `takes_settings` is set, to become a settings object; otherwise they are refused.
    """

    def __init__(self, *args: Any, takes_settings: bool = False, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.takes_settings = takes_settings
        self.params += [
            click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON."),
            click.Option(
                ["--config"],
                type=click.Path(path_type=Path),
                metavar="FILE.toml",
                help="Take options and settings from a TOML file.",
                is_eager=True,
                expose_value=False,
                callback=_take_config,
            ),
            click.Option(
                ["--set"],
                multiple=True,
                metavar="KEY=VALUE",
                help="Set one option or setting; may be repeated.",
                is_eager=True,
                expose_value=False,
                callback=_take_assignments,
            ),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the line over what the user's own file says of this verb."""
        _take_own_file(ctx, self)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Calls the verb's function, with what is no option in `extra`."""
        options = {p.name for p in self.params if p.name}
        extra = {k: v for k, v in _merged(ctx).items() if k not in options}
        if self.takes_settings:
            ctx.params["extra"] = extra
        elif extra:
            from miudo.cli.settings import check_keys

            check_keys(extra, options - {"as_json"}, where="--config or --set")
        return super().invoke(ctx)


def duration(text: str) -> float:
    """Returns the seconds of a duration like 90, 90s, 5m or 1.5h: the type of an option."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)(s|m|h|)", str(text))
    if match is None:
        raise click.BadParameter(f"{str(text)[:40]!r} is no duration; write 90s, 5m or 1h")
    return float(match[1]) * {"h": 3600.0, "m": 60.0}.get(match[2], 1.0)


def verb(name: str, *, takes_settings: bool = False) -> Callable[[Callable[..., Any]], Verb]:
    """Returns a decorator that makes a function the verb `name`."""
    return click.command(name, cls=Verb, takes_settings=takes_settings)


def complete_model(
    ctx: click.Context, parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Returns the names of models on this machine that begin so, then files and folders."""
    from click.shell_completion import CompletionItem

    found = [CompletionItem(name) for name in _model_names() if name.startswith(begun)]
    return found if found and begun else [*found, CompletionItem(begun, type="file")]


def _model_names() -> list[str]:
    """Names by the folders alone: no model is opened."""
    from miudo.hub.folders import home_folder
    from miudo.hub.resolve import embedded_models

    stored = sorted((home_folder() / "models").glob("[!.]*/[!.]*"))
    names = [p.parent.name if p.name == "latest" else f"{p.parent.name}:{p.name}" for p in stored]
    return [*embedded_models(), *names]


def emit(value: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Prints the result: `value` as one JSON object with --json, else `text`."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False) if as_json else text)


def aside(text: str) -> None:
    """Prints what is beside the result, dim, on standard error; NO_COLOR leaves it plain."""
    click.echo(text if os.environ.get("NO_COLOR") else click.style(text, dim=True), err=True)


def origins(ctx: click.Context) -> dict[str, str]:
    """Returns where each option's value came from: flag, variable, a file, default."""
    sources = click.core.ParameterSource
    given, found = _given(ctx), {}
    for option in ctx.command.params:
        name = option.name or ""
        if not option.expose_value:
            continue
        source = ctx.get_parameter_source(name)
        found[name] = {
            sources.COMMANDLINE: "flag",
            sources.ENVIRONMENT: f"variable {_variable(option)}",
        }.get(source, "default")  # type: ignore[arg-type]
        if source is sources.DEFAULT_MAP:
            layers = [layer for layer in ("set", "file", "own") if name in given.get(layer, {})]
            words = {"set": "--set", "file": "--config", "own": str(own_file())}
            found[name] = words[layers[0]]
    return found


def _variable(option: click.Parameter) -> str:
    named = option.envvar
    return named if isinstance(named, str) else ", ".join(named or ())


def parse_size(text: str, option: str) -> int:
    """Returns the bytes of a size like 4GB, 512 MiB or 1.5g. Raises UsageError for others."""
    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([kmgt]?i?)b?\s*", text, re.IGNORECASE)
    unit = None if match is None else _UNITS.get(match[2].lower())
    if match is None or unit is None:
        raise UsageError(f"{text[:40]!r} is no size", where=option, remedy="Write 4GB or 900MiB")
    return int(float(match[1]) * unit)


def printable(text: str) -> str:
    """Returns `text` without what could command a terminal; lines and tabs stay.

    Model files and models write this text, and neither is to be trusted.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _take_config(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is not None:
        from miudo.cli.settings import read_toml

        values = {key.replace("-", "_"): value for key, value in read_toml(path).items()}
        _given(ctx)["file"] = values
        _apply(ctx)


def own_file() -> Path | None:
    """Returns the user's file of settings, tables by verb: `MIUDO_CONFIG`; None if there is none.

    An empty variable says that none is to be read.
    """
    from miudo.hub.folders import config_folder

    named = os.environ.get("MIUDO_CONFIG")
    if named is not None:
        return Path(named) if named else None
    path = config_folder() / "config.toml"
    return path if path.is_file() else None


def _take_own_file(ctx: click.Context, command: Verb) -> None:
    path = own_file()
    if path is None or ctx.resilient_parsing:
        return
    from miudo.cli.settings import check_keys, check_table, read_toml

    tables = read_toml(path)
    root = ctx.find_root()
    if isinstance(root.command, click.Group):
        check_keys(tables, root.command.list_commands(root), where=str(path))
    table = tables.get(command.name or "", {})
    check_table(table, where=f"{path}: {command.name}")
    values = {key.replace("-", "_"): value for key, value in table.items()}
    if not command.takes_settings:
        known = {p.name for p in command.params if p.name and p.expose_value}
        check_keys(values, known, where=f"{path}: {command.name}")
    _given(ctx)["own"] = values
    _apply(ctx)


def _take_assignments(
    ctx: click.Context, parameter: click.Parameter, assignments: tuple[str, ...]
) -> None:
    for text in assignments:
        from miudo.cli.settings import parse_assignment

        _given(ctx)["set"] = _over(_given(ctx).get("set", {}), parse_assignment(text))
    _apply(ctx)


def _given(ctx: click.Context) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = ctx.meta.setdefault(_GIVEN, {})
    return found


def _merged(ctx: click.Context) -> dict[str, Any]:
    given = _given(ctx)
    return _over(_over(given.get("own", {}), given.get("file", {})), given.get("set", {}))


def _apply(ctx: click.Context) -> None:
    merged = _merged(ctx)
    for option in ctx.command.params:
        value = merged.get(option.name or "")
        many = option.nargs != 1 or (isinstance(option, click.Option) and option.multiple)
        # Click would take the letters of Python's own spelling of it.
        if isinstance(value, Mapping) or (isinstance(value, list) and not many):
            raise ConfigError(
                f"{option.name} is {value!r:.60}, it takes one value",
                where="--config or --set",
                remedy=f'Write it as on the command line: {option.name} = "..."',
            )
    # Click asks default_map for whatever the command line leaves out.
    ctx.default_map = merged


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `below` with the values of `above` laid over it, tables key by key."""
    result = dict(below)
    for key, value in above.items():
        held = result.get(key)
        both = isinstance(held, Mapping) and isinstance(value, Mapping)
        result[key] = _over(held, value) if both and held is not None else value
    return result
