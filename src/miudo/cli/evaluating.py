"""`miudo eval` and `miudo compare`.

For: how good a model is on texts and tasks, and models side by side.
Not for: the measuring itself (`miudo.evaluate`).
Read next: `miudo.evaluate.perplexity`, `miudo.evaluate.harness`, `miudo.evaluate.compare`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.counter import Counter
from miudo.cli.options import emit, verb
from miudo.hub.resolve import model_path

if TYPE_CHECKING:
    from miudo.evaluate.loading import LoadedModel
    from miudo.evaluate.tasks.task import Task, TaskSettings

__all__ = ["compare", "evaluate"]


def _measuring(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that both verbs have, but for --data."""
    for option in (
        click.option("--context", type=int, help="Ids that the model sees at once."),
        click.option("--stride", type=int, help="Ids scored at each step of the window."),
        click.option("--max-bytes", type=click.IntRange(1), help="Use this much of each --data."),
        click.option("--engine", type=click.Choice(["native", "torch"]), default="native"),
        click.option("--threads", type=click.IntRange(1), help="Threads of the engine."),
        click.option("--activations", type=click.Choice(["int8", "float"]), default="int8"),
    ):
        function = option(function)
    return function


_DATA_HELP = "Text (file, folder, glob, -), or a data folder: its held-out part."


@verb("eval", takes_settings=True)
@click.argument("model")
@click.option("--data", multiple=True, help=f"{_DATA_HELP} Several: a row for each.")
@_measuring
@click.option("--task", multiple=True, help="Tasks to score, parted by commas.")
@click.option(
    "--task-data",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder (or file) with the tasks' files.",
)
@click.option("--shots", type=click.IntRange(0), help="Examples before each question.")
@click.option("--limit", type=click.IntRange(1), help="Samples of each group of a task.")
@click.option("--samples", type=click.Path(path_type=Path), help="Write every sample here, JSONL.")
@click.option("--against", multiple=True, help="Training text or data folder to find samples in.")
def evaluate(
    model: str,
    *,
    task: tuple[str, ...],
    as_json: bool,
    extra: dict[str, Any],
    engine: str,
    threads: int | None,
    activations: str,
    **options: Any,
) -> None:
    """Measure MODEL: perplexity on --data, or accuracy on --task.

    Tasks: blimp, hellaswag, arc_easy, arc_challenge, csqa, mmlu, enem, last_word, labels.
    Settings by --set or --config: seed, labels.file, labels.prompt, last_word.passages, ...
    """
    from miudo.evaluate.loading import load_model

    jobs = _jobs(task, options, extra)
    path = model_path(model)
    loaded = load_model(path, engine=engine, threads=threads, activations=activations)  # type: ignore[arg-type]
    data = options["data"]
    result: dict[str, Any] = {
        "schema": 1, "model": str(path), "data": list(data), "engine": engine,
    }  # fmt: skip
    texts = []
    if data:
        values, text = _perplexity(loaded, engine, options)
        result |= values
        texts.append(text)
    if jobs is not None:
        values, text = _tasks(loaded, *jobs, options)
        result |= values
        texts.append(text)
    emit(result, "\n\n".join(texts), as_json=as_json)


def _jobs(
    tasks: tuple[str, ...], options: dict[str, Any], extra: dict[str, Any]
) -> tuple[list[Task], TaskSettings] | None:
    """Returns the tasks with their settings, None without --task; refuses what does not fit."""
    from miudo.cli.settings import check_keys, make_settings
    from miudo.errors import UsageError
    from miudo.evaluate.tasks.catalogue import find_tasks
    from miudo.evaluate.tasks.task import TaskSettings

    fields = {field.name for field in dataclasses.fields(TaskSettings)}
    known = fields | {"task", "engine", "threads", "activations"} | options.keys()
    check_keys(extra, known, where="--config or --set")
    names = [name.strip() for names in tasks for name in names.split(",") if name.strip()]
    if not names:
        only = ("task_data", "shots", "limit", "samples", "against")
        given = [f"--{name.replace('_', '-')}" for name in only if options[name] not in (None, ())]
        if given or extra:
            raise UsageError(
                f"{', '.join([*given, *extra])} says how tasks run, and no task is named",
                remedy="Give --task",
            )
        if not options["data"]:
            raise UsageError("nothing to measure on", remedy="Give --data, --task, or both")
        return None
    found = find_tasks(names)
    if not options["data"] and not options["task_data"]:
        raise UsageError("the tasks have no files", remedy="Give --task-data")
    flags = {k: options[k] for k in ("shots", "limit") if options[k] is not None}
    settings = make_settings(TaskSettings, {**extra, **flags}, where="task settings")
    return found, settings


def _perplexity(
    loaded: LoadedModel, engine: str, options: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    from miudo.errors import UsageError
    from miudo.evaluate.perplexity import domain_perplexities
    from miudo.evaluate.texts import read_texts
    from miudo.report import Table, text_table

    data, limit = options["data"], options["max_bytes"]
    if len(set(data)) < len(data):
        raise UsageError("an input is named twice", where="--data", remedy="Name each once")
    with Counter("tokens") as counter:
        found, domains = domain_perplexities(
            loaded.engine,
            loaded.tokenizer,
            {name: read_texts([name], max_bytes=limit) for name in data},
            context=options["context"],
            stride=options["stride"],
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
    values = dataclasses.asdict(found)
    if len(domains) > 1:
        values["domains"] = [{"data": k, **dataclasses.asdict(v)} for k, v in domains.items()]
        rows = [
            (name, f"{of.ppl:.4f} ± {of.ppl_error:.4f}", f"{of.bits_per_byte:.5f}",
             f"{of.tokens:,}", f"{of.bytes:,}", f"{of.documents:,}")
            for name, of in domains.items()
        ]  # fmt: skip
        headers = ("data", "perplexity", "bits/byte", "tokens", "bytes", "documents")
        text += f"\n\n{text_table(Table(headers, rows))}"
    return values, text


def _tasks(
    loaded: LoadedModel, tasks: list[Task], settings: TaskSettings, options: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    from miudo.evaluate.harness import run_tasks, write_samples
    from miudo.evaluate.task_table import task_notes, task_table
    from miudo.evaluate.tasks.task import Source
    from miudo.evaluate.texts import read_texts
    from miudo.files import refuse_inputs
    from miudo.report import text_table

    source = Source(options["task_data"], options["data"], options["max_bytes"])
    out, against = options["samples"], options["against"]
    if out is not None:
        refuse_inputs(out, *source.paths, *map(Path, (*source.texts, *against)))
    with Counter("samples") as counter:
        scored = run_tasks(
            tasks,
            source,
            (loaded.engine, loaded.tokenizer),
            settings,
            against=read_texts(against, split="train") if against else None,
            progress=counter.show,
        )
    if out is not None:
        write_samples(out, (result for _, results in scored for result in results))
    scores = [score for score, _ in scored]
    values = {
        "task_settings": dataclasses.asdict(settings),
        "against": list(against),
        "tasks": [dataclasses.asdict(score) for score in scores],
    }
    return values, "\n".join([text_table(task_table(scores)), *task_notes(scores)])


@verb("compare")
@click.argument("models", nargs=-1, required=True)
@click.option("--data", multiple=True, required=True, help=_DATA_HELP)
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
        [model_path(model) for model in models],
        list(read_texts(data, max_bytes=max_bytes)),
        make_settings(CompareSettings, values),
        progress=lambda line: click.echo(line, err=True),
    )
    table = comparison_table(rows)
    if html is not None:
        html_report("Models side by side", [Section("Comparison", table=table)], html)
    emit(comparison_json(rows), f"{text_table(table)}\n\n{table.caption}", as_json=as_json)
