"""What every verb shares: `--json`, `--config`, `--set`, and how results are printed.

For: one meaning of these three on all verbs. Flags win over `--set`, `--set` over the file.
Not for: the options of one verb.
Read next: `miudo.cli.settings`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from miudo.errors import ConfigError, UsageError

__all__ = [
    "BLOCK_TYPES",
    "Verb",
    "cache_type_option",
    "emit",
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


def verb(name: str, *, takes_settings: bool = False) -> Callable[[Callable[..., Any]], Verb]:
    """Returns a decorator that makes a function the verb `name`."""
    return click.command(name, cls=Verb, takes_settings=takes_settings)


def emit(value: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Prints the result: `value` as one JSON object with --json, else `text`."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False) if as_json else text)


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
    return _over(_given(ctx).get("file", {}), _given(ctx).get("set", {}))


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
