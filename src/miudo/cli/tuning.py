"""`miudo finetune` and `miudo merge`.

For: a model learns from chats or text of yours; an adapter becomes part of its model.
Not for: the training itself (`miudo.train.finetune`).
Read next: `miudo.train.finetune`, `miudo.train.merge`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.options import complete_model, emit, printable, verb
from miudo.cli.settings import check_table, make_settings
from miudo.cli.templates import read_template, template_option
from miudo.cli.training_options import (
    data_option,
    emit_fit,
    length_options,
    require_data,
    run_settings,
    typed,
    zeros_option,
)
from miudo.errors import UsageError
from miudo.hub.resolve import model_path

if TYPE_CHECKING:
    from miudo.train.lesson import FinetuneJob

__all__ = ["finetune", "merge"]


@verb("finetune", takes_settings=True)
@click.argument("model", shell_complete=complete_model)
@data_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--lora/--full", default=True, help="Train side paths (the default), or all weights.")
@click.option("--rank", type=int, help="Directions of a side path; default 8.")
@click.option("--alpha", type=float, help="A side path is scaled by alpha / rank; default 16.")
@click.option("--dropout", type=float, help="On what goes into a side path; default 0.")
@click.option("--targets", help="Matrices, by comma: q,v,o,up,...; default all.")
@template_option
@click.option("--epochs", type=float, help="Length of the run in passes over the data,")
@zeros_option
@length_options
@click.option("--preview", type=click.IntRange(1), help="Show so many samples and stop.")
@click.option("--dry-run", is_flag=True, help="Tell memory and time, write nothing.")
def finetune(  # noqa: PLR0913 - one parameter an option
    model: str,
    *,
    data: tuple[str, ...],
    out: Path | None,
    lora: bool,
    chat_template: str | None,
    epochs: float | None,
    resume: bool,
    preview: int | None,
    dry_run: bool,
    as_json: bool,
    extra: dict[str, Any],
    **flags: Any,
) -> None:
    """Teach MODEL from --data: chats (JSONL, CSV, Parquet), or running text.

    Of chats the assistant's answers alone are learned. Columns of tables are named by
    --set chat.prompt=COLUMN and chat.answer=COLUMN; settings of the run (lr, accumulate, ...)
    go by --set or --config too.
    """
    require_data(data)
    if out is None and not (preview or dry_run):
        raise UsageError("no folder is named", where="--out", remedy="Give --out FOLDER")
    shown = preview is not None
    job = _job(model, data, out or Path(), lora, chat_template, epochs, extra, flags, preview=shown)
    if preview:
        _preview(job, preview, as_json=as_json)
    elif dry_run:
        from miudo.train.estimate import estimate
        from miudo.train.progress import Lines

        found = estimate(job, Lines())
        emit(found.to_json(), found.text(), as_json=as_json)
    else:
        from miudo.train.finetune import finetune as run
        from miudo.train.progress import Lines

        made = run(job, Lines(), resume=resume)
        emit_fit(made.path, made.fit, as_json=as_json, kind=made.path.name)


def _job(  # noqa: PLR0913 - what the verb was told
    model: str,
    data: tuple[str, ...],
    out: Path,
    lora: bool,
    chat_template: str | None,
    epochs: float | None,
    extra: dict[str, Any],
    flags: dict[str, Any],
    *,
    preview: bool,
) -> FinetuneJob:
    from miudo.data.chats import ChatSettings
    from miudo.decoder.lora import LoraSettings
    from miudo.train.finetune import defaults
    from miudo.train.lesson import FinetuneJob

    targets = flags.pop("targets")
    given = {name: flags.pop(name) for name in ("rank", "alpha", "dropout")}
    given["targets"] = None if targets is None else [t.strip() for t in targets.split(",")]
    side = {n: v for n, v in given.items() if v is not None}
    table = extra.pop("lora_settings", {})
    check_table(table, where="lora_settings")
    if not lora and (side or table):
        name = next(iter({**side, **table}))
        raise UsageError("has no side paths", where="--full", remedy=f"Leave out --{name}")
    chat = make_settings(ChatSettings, extra.pop("chat", {}), where="chat")
    keep_zeros = flags.pop("keep_zeros")
    epochs = _length(epochs, flags, preview=preview)
    fit, packing = run_settings({**defaults(lora=lora), **extra}, flags)
    return FinetuneJob(
        model=model_path(model),
        inputs=data,
        out=out,
        fit=fit,
        lora=make_settings(LoraSettings, {**table, **side}, where="lora_settings")
        if lora
        else None,
        epochs=epochs,
        chat=chat,
        chat_template=None if chat_template is None else read_template(chat_template),
        prepare=packing,
        keep_zeros=keep_zeros,
    )


def _length(epochs: float | None, flags: dict[str, Any], *, preview: bool) -> float | None:
    """Returns the epochs of the run, and leaves in `flags` the one length that `fit` is told.

    Raises UsageError unless there is one; what is typed stands above a file's.
    """
    names = ("tokens", "steps", "minutes")
    given = {"epochs": epochs} | {name: flags[name] for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    given = typed(given) or given
    if len(given) != 1 and not (preview and not given):
        raise UsageError(
            f"the run's length is given {len(given)} times",
            where="--epochs, --tokens, --steps, --minutes",
            remedy="Give one of them",
        )
    flags |= {name: given.get(name) for name in names}
    if not given.keys() & set(names):
        flags["steps"] = 1  # stands in until the rows are counted; a preview takes none
    found: float | None = given.get("epochs")
    return found


def _preview(job: FinetuneJob, count: int, *, as_json: bool) -> None:
    from miudo.train.preview import preview

    # The words of https://no-color.org: any value, even an empty one, is a wish.
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    shown = preview(job, count)
    value = {"schema": 1, "samples": [sample.to_json() for sample in shown]}
    lines = []
    for sample in shown:
        parts = (
            click.style(printable(text), fg="green", bold=True)
            if learned and colour
            else f"[{printable(text)}]"
            if learned
            else printable(text)
            for text, learned in sample.spans
        )
        if sample.spans:
            head = f"{sample.where}: {sample.tokens} tokens, {sample.learned} learned"
            lines.append(f"{head}\n{''.join(parts)}\n")
            if sample.typed:
                names = printable(", ".join(sample.typed))
                lines.append(f"typed, and so taken as plain text: {names}\n")
        else:
            lines.append(f"{sample.where}: longer than a row, left out\n")
    mark = "in colour" if colour else "in brackets"
    lines.append(f"What is learned stands {mark}.")
    emit(value, "\n".join(lines), as_json=as_json)


@verb("merge")
@click.argument("model", shell_complete=complete_model)
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@zeros_option
@click.option(
    "--dtype",
    type=click.Choice(["F32", "F16", "BF16"], case_sensitive=False),
    default="F32",
    show_default=True,
    help="How numbers lie.",
)
@click.option("--force", is_flag=True, help="Replace the model that is at --out.")
def merge(
    model: str,
    *,
    adapter: Path,
    out: Path,
    keep_zeros: bool | None,
    dtype: str,
    force: bool,
    as_json: bool,
) -> None:
    """Add ADAPTER, a PEFT folder or GGUF file, into MODEL's weights; write a model's folder."""
    from miudo.tensors import DType
    from miudo.train.merge import merge_adapter

    path = model_path(model)
    if out.exists() and not force:
        raise UsageError("is there already", where=out, remedy="Give another --out, or --force")
    made = merge_adapter(path, adapter, out, keep_zeros=keep_zeros, dtype=DType(dtype))
    text = "\n".join([f"model  {made.path}", *(f"note   {note}" for note in made.notes)])
    emit({"schema": 1, "model": str(made.path), "notes": made.notes}, text, as_json=as_json)
