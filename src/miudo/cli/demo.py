"""`miudo demo`.

For: the whole way on a corpus of our own making, in minutes.
Not for: the way itself (`miudo.shrink.demo`).
Read next: `miudo.shrink.demo`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from miudo.cli.options import emit, printable, verb
from miudo.cli.settings import make_settings

__all__ = ["demo"]


@verb("demo", takes_settings=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="demo",
    show_default=True,
    help="Folder for everything that is made; a second run goes on from there.",
)
@click.option("--minutes", type=float, help="Minutes of training in all.")
@click.option("--seed", type=int, help="Seed of text, weights and order.")
def demo(out: Path, minutes: float | None, seed: int | None, *, extra: Any, as_json: bool) -> None:
    """Go the whole way, small: text, tokens, teacher, student, one file, engine, report.

    The text is synthetic, made by a seeded generator, in English and Portuguese.
    """
    from miudo.shrink.demo import DemoSettings, run_demo

    given = {"minutes": minutes, "seed": seed}
    flags = {name: value for name, value in given.items() if value is not None}
    settings = make_settings(DemoSettings, {**extra, **flags}, where="demo settings")
    result = run_demo(out, settings, say=lambda line: click.echo(line, err=True))
    emit(result.to_json(), printable(result.text()), as_json=as_json)
