"""The options of `miudo distill` that say how a teacher is asked.

For: a cache of its answers, the student's own text, another tokenizer.
Not for: what is compared (`miudo.cli.shrinking`), or doing it (`miudo.compress.distill.ways`).
Read next: `miudo.compress.distill.ways`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from miudo.cli.settings import check_table, make_settings
from miudo.errors import UsageError

if TYPE_CHECKING:
    from miudo.compress.distill.ways import Way

__all__ = ["chosen_way", "way_options"]

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--cache",
        type=click.Path(path_type=Path),
        help="Learn from TEACHER's answers in this folder, made if need be; temperature 1.",
    ),
    click.option(
        "--on-policy",
        type=float,
        metavar="SHARE",
        help="In this share of the batches TEACHER judges what the student writes.",
    ),
    click.option(
        "--cross",
        type=click.Choice(("hybrid", "uld")),
        help="TEACHER has another tokenizer than --start: how they are compared.",
    ),
)


def way_options(function: F) -> F:
    """Adds the options; the tables `cached`, `sampled` and `crossed` hold further settings."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def chosen_way(
    extra: dict[str, Any],
    flags: Mapping[str, Any],
    *,
    cache: Path | None,
    on_policy: float | None,
    cross: str | None,
) -> Way | None:
    """Returns the way that is asked for, None for the plain one; takes its table out of `extra`.

    `flags` are those of the loss, of which `--cross` has its own. Raises UsageError for two ways,
    for flags that one does not have, and for a table without its option.
    """
    from miudo.compress.distill.cross import CrossSettings
    from miudo.compress.distill.onpolicy import OnPolicySettings
    from miudo.compress.distill.ways import Cached

    options = {"--cache": cache, "--on-policy": on_policy, "--cross": cross}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise UsageError(
            "a teacher is asked in one way at a time", where=", ".join(given), remedy="Choose one"
        )
    tables = {}
    for name, option in {
        "cached": "--cache",
        "sampled": "--on-policy",
        "crossed": "--cross",
    }.items():
        table = extra.pop(name, {})
        check_table(table, where=name)
        if table and option not in given:
            raise UsageError("has no use", where=name, remedy=f"Give {option}, or leave it out")
        tables[name] = dict(table)
    if cache is not None:
        return make_settings(Cached, tables["cached"] | {"folder": cache}, where="cached")
    if on_policy is not None:
        values = tables["sampled"] | {"share": on_policy}
        return make_settings(OnPolicySettings, values, where="sampled")
    if cross is None:
        return None
    for name in ("loss", "features"):
        if flags.get(name) is not None:
            raise UsageError(f"takes no --{name}", where="--cross", remedy="Leave it out")
    own = {n: flags[n] for n in ("temperature", "alpha") if flags.get(n) is not None}
    return make_settings(CrossSettings, tables["crossed"] | own | {"mode": cross}, where="crossed")
