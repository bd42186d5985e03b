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
from miudo.cli.options import complete_model, emit, printable, verb, watts_option
from miudo.hub.resolve import model_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from miudo.evaluate.loading import LoadedModel
    from miudo.evaluate.perplexity import Perplexity
    from miudo.evaluate.prepared import PreparedTask
    from miudo.evaluate.tasks.task import Source, Task, TaskSettings
    from miudo.report import Table

__all__ = ["compare", "evaluate"]


def _measuring(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that both verbs have, but for --data."""
    for option in (
        click.option(
            "--adapter",
            type=click.Path(path_type=Path),
            help="Lay this LoRA adapter over the model, or over each.",
        ),
        click.option("--context", type=int, help="Ids that the model sees at once."),
        click.option("--stride", type=int, help="Ids scored at each step of the window."),
        click.option(
            "--max-bytes",
            type=click.IntRange(1),
            help="Use this much of each --data, and of each source in a folder.",
        ),
        click.option("--engine", type=click.Choice(["native", "torch"]), default="native"),
        click.option("--threads", type=click.IntRange(1), help="Threads of the engine."),
        click.option("--activations", type=click.Choice(["int8", "float"]), default="int8"),
    ):
        function = option(function)
    return function


_DATA_HELP = "Text (file, folder, glob, -), or a data folder: its held-out part."


@verb("eval", takes_settings=True)
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--data", multiple=True, help=f"{_DATA_HELP} Several, or several sources in it: a row for each."
)
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
    **options: Any,
) -> None:
    """Measure MODEL: perplexity on --data, or accuracy on --task.

    Tasks: blimp, hellaswag, arc_easy, arc_challenge, csqa, mmlu, enem, last_word, labels.
    Settings by --set or --config: seed, labels.file, labels.prompt, last_word.passages, ...
    """
    from miudo.evaluate.loading import load_model
    from miudo.evaluate.texts import read_domains

    jobs = _jobs(task, options, extra)
    path = model_path(model)
    how = {
        name: options[name] for name in ("engine", "threads", "activations", "adapter", "context")
    }
    loaded = load_model(path, **how)
    data, adapter = options["data"], options["adapter"]
    result: dict[str, Any] = {
        "schema": 1, "model": str(path), "data": list(data), "engine": options["engine"],
        "adapter": None if adapter is None else str(adapter),
    }  # fmt: skip
    # Scoring may take hours: whatever can be found wrong is looked for before it.
    prepared = None if jobs is None else _prepared(loaded, *jobs, options)
    domains = read_domains(data, max_bytes=options["max_bytes"])
    texts = []
    if data:
        values, text = _perplexity(loaded, domains, options)
        result |= values
        texts.append(text)
    if prepared is not None and jobs is not None:
        values, text = _tasks(loaded, prepared, jobs[2], options)
        result |= values
        texts.append(text)
    emit(result, "\n\n".join(texts), as_json=as_json)


def _jobs(
    tasks: tuple[str, ...], options: dict[str, Any], extra: dict[str, Any]
) -> tuple[list[Task], Source, TaskSettings] | None:
    """Returns tasks, their files and settings, None without --task; refuses what does not fit."""
    from miudo.cli.settings import check_keys, make_settings
    from miudo.errors import UsageError
    from miudo.evaluate.tasks.catalogue import find_tasks
    from miudo.evaluate.tasks.task import Source, TaskSettings
    from miudo.files import check_output, refuse_inputs

    fields = {field.name for field in dataclasses.fields(TaskSettings)}
    known = fields | {"task"} | options.keys()
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
    source = Source(options["task_data"], options["data"], options["max_bytes"])
    _check_standard_input(found, source, options["against"])
    if options["samples"] is not None:
        inputs = map(Path, (*source.texts, *options["against"]))
        refuse_inputs(options["samples"], *source.paths, *inputs)
        check_output(options["samples"])
    return found, source, settings


def _check_standard_input(tasks: list[Task], source: Source, against: tuple[str, ...]) -> None:
    """Refuses "-" where two would read it: perplexity, the tasks that take text, --against."""
    from miudo.data.lines import STDIN
    from miudo.errors import UsageError

    of_tasks = (source.texts or source.paths) if any(task.takes_texts for task in tasks) else ()
    readers = [*source.texts, *of_tasks, *against]
    if [Path(reader) for reader in readers].count(STDIN) > 1:
        raise UsageError(
            "standard input can be read once, and is asked for twice",
            where="-",
            remedy="Write it to a file and name that",
        )


def _perplexity(
    loaded: LoadedModel,
    domains: Mapping[tuple[str, ...], Iterator[str]],
    options: dict[str, Any],
) -> tuple[dict[str, Any], str]:
    from miudo.evaluate.perplexity import domain_perplexities
    from miudo.report import text_table

    with Counter("tokens") as counter:
        rows = domain_perplexities(
            loaded.engine,
            loaded.tokenizer,
            domains,
            context=options["context"],
            stride=options["stride"],
            adapter=loaded.adapter,
            progress=counter.show,
        )
    found = rows.pop(())
    start = "none" if found.start is None else f"id {found.start}"
    text = (
        f"perplexity     {found.ppl:.4f} ± {found.ppl_error:.4f} (one standard error)\n"
        f"bits per byte  {found.bits_per_byte:.5f}\n"
        f"on             {found.tokens:,} tokens, {found.bytes:,} bytes, "
        f"{found.documents:,} documents\n"
        f"how            {options['engine']} engine, context {found.context}, "
        f"stride {found.stride}, start of a document {start}"
    )
    if options["adapter"] is not None:
        text += f"\nadapter        {options['adapter']}"
    values = dataclasses.asdict(found)
    if len(options["data"]) == 1:  # its own row is that over all
        rows.pop((options["data"][0],))
    if rows:
        values["domains"] = [
            {"data": name[0], "source": "".join(name[1:]) or None, **dataclasses.asdict(of)}
            for name, of in rows.items()
        ]
        text += f"\n\n{text_table(_domain_table(rows))}"
    return values, text


def _domain_table(domains: Mapping[tuple[str, ...], Perplexity]) -> Table:
    """Returns a row for each input, and under it one for each source of a data folder."""
    from miudo.report import Table

    rows = [
        ("  " * (len(name) - 1) + printable(name[-1]), f"{of.ppl:.4f} ± {of.ppl_error:.4f}",
         f"{of.bits_per_byte:.5f}", f"{of.tokens:,}", f"{of.bytes:,}", f"{of.documents:,}")
        for name, of in domains.items()
    ]  # fmt: skip
    return Table(("data", "perplexity", "bits/byte", "tokens", "bytes", "documents"), rows)


def _prepared(
    loaded: LoadedModel,
    tasks: list[Task],
    source: Source,
    settings: TaskSettings,
    options: dict[str, Any],
) -> list[PreparedTask]:
    from itertools import chain

    from miudo.evaluate.prepared import prepare_tasks
    from miudo.evaluate.texts import read_domains

    against = read_domains(options["against"], split="train")
    return prepare_tasks(
        tasks,
        source,
        (loaded.engine, loaded.tokenizer),
        settings,
        against=chain.from_iterable(against.values()) if against else None,
    )


def _tasks(
    loaded: LoadedModel,
    prepared: list[PreparedTask],
    settings: TaskSettings,
    options: dict[str, Any],
) -> tuple[dict[str, Any], str]:
    from miudo.evaluate.harness import run_tasks, write_samples
    from miudo.evaluate.task_table import task_notes, task_table
    from miudo.report import text_table

    with Counter("samples") as counter:
        scored = run_tasks(
            prepared,
            (loaded.engine, loaded.tokenizer),
            adapter=loaded.adapter,
            progress=counter.show,
        )
    if options["samples"] is not None:
        write_samples(options["samples"], (result for _, results in scored for result in results))
    scores = [score for score, _ in scored]
    values = {
        "task_settings": dataclasses.asdict(settings),
        "against": list(options["against"]),
        "tasks": [dataclasses.asdict(score) for score in scores],
    }
    return values, "\n".join([text_table(task_table(scores)), *task_notes(scores)])


@verb("compare")
@click.argument("models", nargs=-1, required=True, shell_complete=complete_model)
@click.option("--data", multiple=True, required=True, help=_DATA_HELP)
@_measuring
@click.option("--repeats", type=click.IntRange(1), default=5, help="Runs of a speed measurement.")
@watts_option
@click.option("--html", type=click.Path(path_type=Path), help="Write the table as a page too.")
def compare(
    models: tuple[str, ...],
    *,
    data: tuple[str, ...],
    max_bytes: int | None,
    repeats: int,
    watts: float | None,
    html: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Put MODELS side by side; the first is what the others are compared with."""
    from miudo.cli.settings import make_settings
    from miudo.evaluate.compare import CompareSettings, comparison_json, comparison_table
    from miudo.evaluate.compare import compare as compare_models
    from miudo.evaluate.texts import read_texts
    from miudo.files import check_output
    from miudo.names import LocalRef, parse_reference
    from miudo.report import Section, html_report, text_table

    if html is not None:
        check_output(html)
    bench = {"repeats": repeats} | ({} if watts is None else {"watts": watts})
    named = any(not isinstance(parse_reference(model), LocalRef) for model in models)
    rows = compare_models(
        [model_path(model) for model in models],
        list(read_texts(data, max_bytes=max_bytes)),
        make_settings(CompareSettings, {**options, "bench": bench}),
        # The end of a path in the store or the cache is a tag or a commit.
        names=models if named else (),
        progress=lambda line: click.echo(line, err=True),
    )
    table = comparison_table(rows)
    if html is not None:
        html_report("Models side by side", [Section("Comparison", table=table)], html)
    emit(comparison_json(rows), f"{text_table(table)}\n\n{table.caption}", as_json=as_json)
