"""`miudo bench`: how fast a model runs here, and how near that is to what the machine can do.

For: options, progress, printing.
Not for: the measuring itself (`miudo.evaluate.grid`).
Read next: `miudo.evaluate.benched`, `miudo.evaluate.grid_report`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from miudo.cli.options import cache_type_option, complete_model, emit, verb, watts_option
from miudo.hub.resolve import model_path

__all__ = ["bench"]

_QUICK: dict[str, Any] = {
    "contexts": (16, 512), "batches": (1, 8), "new_tokens": 32, "seconds": 8.0,
}  # fmt: skip


def _numbers(
    ctx: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not like 16,512", ctx, parameter) from None


@verb("bench")
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--contexts", callback=_numbers, help="Tokens before the new ones.  [default: 16 to 8192]"
)
@click.option(
    "--batches", callback=_numbers, help="Conversations at once.  [default: 1 to 32, doubling]"
)
@click.option("--new-tokens", type=click.IntRange(1), help="Decoded at a time.  [default: 64]")
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    help="About what all may take; what does not fit is left out.  [default: 60]",
)
@click.option("--quick", is_flag=True, help="Two contexts, two batches, ten seconds.")
@click.option("--phases", is_flag=True, help="Tell where the time goes, by parts of a step.")
@watts_option
@click.option(
    "--adapter", type=click.Path(path_type=Path), help="Lay this LoRA adapter over the model."
)
@click.option("--threads", type=click.IntRange(1), help="Threads of the engine.")
@click.option("--activations", type=click.Choice(["int8", "float"]), default="int8")
@cache_type_option
@click.option("--out", type=click.Path(path_type=Path), help="Write a page with plots here, .html.")
def bench(model: str, *, quick: bool, out: Path | None, as_json: bool, **options: Any) -> None:
    """Measure how fast MODEL runs on this machine.

    Prompts and new tokens, over contexts with one conversation and over batches with the first
    context; beside each the share of the machine's bandwidth and arithmetic, measured between
    the runs.
    """
    from miudo.evaluate.benched import bench_model
    from miudo.evaluate.grid import GridSettings
    from miudo.evaluate.grid_report import bench_json, bench_tables, bench_text, write_page
    from miudo.report import text_table

    if out is not None:
        _check_page(out)
    given = {
        name: options[name]
        for name in ("contexts", "batches", "new_tokens", "seconds", "watts", "phases")
        if options[name] is not None
    }
    settings = GridSettings(**((_QUICK if quick else {}) | given))
    benched = bench_model(
        model_path(model),
        settings,
        name=model,
        cache=options["cache_type"],
        progress=lambda line: click.echo(line, err=True),
        **{name: options[name] for name in ("threads", "activations", "adapter")},
    )
    if out is not None:
        write_page(benched, out)
    parts = [bench_text(benched)]
    for table in bench_tables(benched.grid):
        parts += [text_table(table), table.caption]
    emit(bench_json(benched), "\n\n".join(parts), as_json=as_json)


def _check_page(out: Path) -> None:
    """Refuses before the measuring what would fail after it."""
    from importlib.util import find_spec

    from miudo.errors import MissingError, UsageError
    from miudo.files import check_output

    if out.suffix != ".html":
        raise UsageError("the page's name ends in .html", where=out)
    check_output(out)
    if find_spec("matplotlib") is None:
        raise MissingError(
            "the page's plots need the package matplotlib",
            remedy="Install what making models takes: pip install 'miudo[make]'",
        )
