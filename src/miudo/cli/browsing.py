"""`miudo catalog`: models that people talk about, and which of them fit.

For: choosing a model before it is fetched: memory, licence, languages, what it is good at.
Not for: models that are here (`miudo list`, `miudo show`).
Read next: `miudo.hub.catalogue`, `miudo.hub.shown`.
"""

from __future__ import annotations

import click

from miudo.cli.options import emit, parse_size, verb

__all__ = ["catalog"]


@verb("catalog")
@click.option(
    "--fits", metavar="SIZE", help="Weights, keys and values in this memory: 4GB, 900MiB."
)
@click.option(
    "--license",
    "licence",
    metavar="WHAT",
    help="commercial: allows it, if on conditions. permissive: without any. Or an SPDX id.",
)
@click.option("--task", help="Good at this, by its makers: chat, code, maths, research ...")
@click.option(
    "--context",
    type=click.IntRange(1),
    default=4096,
    show_default=True,
    help="Tokens that keys and values are computed for.",
)
def catalog(
    *, fits: str | None, licence: str | None, task: str | None, context: int, as_json: bool
) -> None:
    """Show the models that miudo knows of: size, memory, context, languages, licence, uses.

    Memory is computed from the shape. What a model is good at is its makers' claim, with the
    page that makes it. `miudo pull NAME` fetches one.
    """
    from miudo.hub.catalogue import load_catalogue
    from miudo.hub.shown import entries_text, entry_json

    catalogue = load_catalogue()
    budget = None if fits is None else parse_size(fits, "--fits")
    found = catalogue.chosen(budget=budget, context=context, licence=licence, task=task)
    rows = [entry_json(entry, context) for entry in found]
    if budget is not None:
        for row, entry in zip(rows, found, strict=True):
            row["fits_as"] = entry.fits(budget, context)
    text = entries_text(found, context, budget) if found else "no model of the catalogue is so"
    emit({"schema": 1, "models": rows}, text, as_json=as_json)
