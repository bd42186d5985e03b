"""`miudo suggest`: the next words of a text, or the ends of its last one.

For: looking at what a keyboard would show.
Not for: the search (`miudo.engine.suggest`) or running text (`miudo.cli.running`).
Read next: `miudo.engine.suggest`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from miudo.cli.options import emit, printable, verb
from miudo.hub.resolve import model_path

__all__ = ["suggest"]


@verb("suggest")
@click.argument("text")
@click.option("--model", help="Default: the model inside the package.")
@click.option("--count", type=click.IntRange(1, 32), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads of the engine.")
@click.option("--activations", type=click.Choice(["int8", "float"]), default="int8")
def suggest(
    text: str,
    *,
    model: str | None,
    count: int,
    threads: int | None,
    activations: Any,
    as_json: bool,
) -> None:
    """Show the next words of TEXT, most probable first.

    Where TEXT ends in letters, they are the beginning of the word that is looked for; end it
    with a blank for the word after.
    """
    from miudo.engine.suggest import Suggester
    from miudo.evaluate.loading import load_model

    loaded = load_model(model_path(model), threads=threads, activations=activations)
    start = () if loaded.model.config.bos_id is None else (loaded.model.config.bos_id,)
    found = Suggester(loaded.engine, loaded.tokenizer, start=start).suggest(text, count)
    lines = [f"{s.probability:6.1%}  {printable(s.word)}" for s in found]
    value = {"schema": 1, "text": text, "words": [dataclasses.asdict(s) for s in found]}
    emit(value, "\n".join(lines) or "no word begins so", as_json=as_json)
