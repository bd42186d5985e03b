"""`miudo eval` and `miudo compare`.

For: how good a model is on a text, and models side by side.
Not for: the measuring itself (`miudo.evaluate`).
Read next: `miudo.evaluate.perplexity`, `miudo.evaluate.compare`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from miudo.cli.counter import Counter
from miudo.cli.options import emit, verb

__all__ = ["compare", "evaluate"]


def _measuring(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that both verbs have."""
    for option in (
        click.option(
            "--data",
            multiple=True,
            required=True,
            help="Text (file, folder, glob, -), or a data folder: its held-out part.",
        ),
        click.option("--context", type=int, help="Ids that the model sees at once."),
        click.option("--stride", type=int, help="Ids scored at each step of the window."),
        click.option("--max-bytes", type=click.IntRange(1), help="Use this much of the text."),
        click.option("--engine", type=click.Choice(["native", "torch"]), default="native"),
        click.option("--threads", type=click.IntRange(1), help="Threads of the engine."),
        click.option("--activations", type=click.Choice(["int8", "float"]), default="int8"),
    ):
        function = option(function)
    return function


@verb("eval")
@click.argument("model")
@_measuring
def evaluate(  # noqa: PLR0913 - one parameter an option
    model: str,
    *,
    data: tuple[str, ...],
    context: int | None,
    stride: int | None,
    max_bytes: int | None,
    engine: str,
    threads: int | None,
    activations: str,
    as_json: bool,
) -> None:
    """Measure MODEL's perplexity and bits per byte on --data, document by document."""
    from miudo.evaluate.loading import load_model
    from miudo.evaluate.perplexity import perplexity
    from miudo.evaluate.texts import read_texts

    path = _path(model)
    loaded = load_model(path, engine=engine, threads=threads, activations=activations)  # type: ignore[arg-type]
    documents = read_texts(data, max_bytes=max_bytes)
    with Counter("tokens") as counter:
        found = perplexity(
            loaded.engine,
            loaded.tokenizer,
            documents,
            context=context,
            stride=stride,
            progress=counter.show,
        )
    start = "none" if found.start is None else f"id {found.start}"
    text = (
        f"perplexity     {found.ppl:.4f} ± {found.ppl_error:.4f} (one standard error)\n"
        f"bits per byte  {found.bits_per_byte:.5f}\n"
        f"on             {found.tokens:,} tokens, {found.bytes:,} bytes, "
        f"{found.documents:,} documents\n"
        f"how            {engine} engine, context {found.context}, stride {found.stride}, "
        f"start of a document {start}"
    )
    result = {"schema": 1, "model": str(path), "data": list(data), "engine": engine}
    emit({**result, **dataclasses.asdict(found)}, text, as_json=as_json)


@verb("compare")
@click.argument("models", nargs=-1, required=True)
@_measuring
@click.option("--repeats", type=click.IntRange(1), default=5, help="Runs of a speed measurement.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the table as a page too.")
def compare(  # noqa: PLR0913 - one parameter an option
    models: tuple[str, ...],
    *,
    data: tuple[str, ...],
    context: int | None,
    stride: int | None,
    max_bytes: int | None,
    engine: str,
    threads: int | None,
    activations: str,
    repeats: int,
    html: Path | None,
    as_json: bool,
) -> None:
    """Put MODELS side by side; the first is what the others are compared with."""
    from miudo.cli.settings import make_settings
    from miudo.evaluate.compare import CompareSettings, comparison_json, comparison_table
    from miudo.evaluate.compare import compare as compare_models
    from miudo.evaluate.texts import read_texts
    from miudo.report import Section, html_report, text_table

    values = {
        "engine": engine,
        "threads": threads,
        "activations": activations,
        "context": context,
        "stride": stride,
        "bench": {"repeats": repeats},
    }
    rows = compare_models(
        [_path(model) for model in models],
        list(read_texts(data, max_bytes=max_bytes)),
        make_settings(CompareSettings, values),
        progress=lambda line: click.echo(line, err=True),
    )
    table = comparison_table(rows)
    if html is not None:
        html_report("Models side by side", [Section("Comparison", table=table)], html)
    emit(comparison_json(rows), f"{text_table(table)}\n\n{table.caption}", as_json=as_json)


def _path(model: str) -> Path:
    from miudo.hub.resolve import resolve
    from miudo.names import parse_reference

    return resolve(parse_reference(model))
