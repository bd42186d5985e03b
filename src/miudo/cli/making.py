"""`miudo prepare` and `miudo train`.

For: text to packed tokens, tokens to a model.
Not for: making a model smaller (`miudo.cli.shrinking`).
Read next: `miudo.data.pipeline`, `miudo.train.pretrain`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from miudo.cli.options import emit, verb
from miudo.cli.settings import check_keys, make_settings
from miudo.cli.templates import read_template, template_option
from miudo.cli.training_options import (
    data_option,
    emit_fit,
    require_data,
    run_options,
    run_settings,
    typed,
    zeros_option,
)
from miudo.errors import ConfigError, UsageError
from miudo.hub.resolve import model_path

__all__ = ["prepare", "train"]


@verb("prepare", takes_settings=True)
@click.argument("inputs", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Data folder to write.")
@click.option("--vocab-size", type=int, help="Size of the tokenizer that is trained.")
@click.option("--tokenizer", help="Use this model's tokenizer (or a tokenizer.json) instead.")
@click.option("--held-out", type=float, help="Share of documents kept from training.")
@click.option("--seed", type=int, help="Seed of the held-out choice.")
@click.option("--keep-duplicates", is_flag=True, help="Look for no duplicates.")
def prepare(
    inputs: tuple[str, ...],
    *,
    out: Path,
    tokenizer: str | None,
    keep_duplicates: bool,
    as_json: bool,
    extra: dict[str, Any],
    **flags: Any,
) -> None:
    """Read INPUTS (files, folders, globs, -), clean them, drop duplicates, pack tokens.

    Instead of INPUTS, --config may name a recipe: the sources of its table `prepare` are read.
    """
    from miudo.data.pipeline import PrepareSettings
    from miudo.data.pipeline import prepare as prepare_data

    if "prepare" in extra:
        extra, flags = _of_recipe(extra), typed(flags)
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in extra.items()}
    for name, value in flags.items():
        if value is not None and name == "vocab_size":
            values[name] = value
        elif value is not None:
            values.setdefault("pack", {})[name] = value
    settings = make_settings(PrepareSettings, values, where="data settings")
    if keep_duplicates:
        from dataclasses import replace

        settings = replace(settings, dedupe=None)
    require_data(inputs, settings)
    found = None if tokenizer is None else _tokenizer(tokenizer)
    data = prepare_data(inputs, out, tokenizer=found, settings=settings, progress=_say)
    counts = {name: data.tokens(name) for name in ("train", "held_out")}
    text = f"{out}: {counts['train']:,} tokens to train on, {counts['held_out']:,} held out"
    emit({"schema": 1, "out": str(out), "tokens": counts}, text, as_json=as_json)


@verb("train", takes_settings=True)
@data_option
@click.option("--preset", default="1m", show_default=True, help="Shape: 1m, 6m, 15m, 30m, 100m.")
@click.option("--tokenizer", help="Use this model's tokenizer (or a tokenizer.json).")
@click.option("--init", metavar="MODEL", help="Start from this model's weights and tokenizer.")
@zeros_option
@template_option
@run_options
@click.option("--from-step", type=int, help="With --resume: go on from this checkpoint.")
@click.option("--end", is_flag=True, help="With --resume: make a model of the checkpoint as it is.")
def train(  # noqa: PLR0913 - one parameter an option
    *,
    data: tuple[str, ...],
    preset: str,
    tokenizer: str | None,
    init: str | None,
    keep_zeros: bool | None,
    chat_template: str | None,
    out: Path,
    resume: bool,
    from_step: int | None,
    end: bool,
    as_json: bool,
    extra: dict[str, Any],
    **length: Any,
) -> None:
    """Train a model on --data (text, or one data folder) from nothing, or from --init.

    Further settings of the run (lr, batch_size, eval_every, ...) and of the text
    (prepare.vocab_size, ...) go by --set or --config.
    """
    from miudo.train.pretrain import TrainJob
    from miudo.train.pretrain import resume as resume_run
    from miudo.train.pretrain import train as train_model
    from miudo.train.progress import Lines

    if end and not resume:
        raise UsageError("is for a run that has begun", where="--end", remedy="Add --resume")
    if resume:
        made = resume_run(out, Lines(), from_step=from_step, end=end)
    else:
        settings, packing = run_settings(extra, length)
        require_data(data, packing)
        if init and tokenizer:
            raise UsageError(
                "a model to start from brings its own tokenizer",
                where="--tokenizer",
                remedy="Leave it out",
            )
        job = TrainJob(
            inputs=data,
            out=out,
            settings=settings,
            shape=preset,
            prepare=packing,
            tokenizer=None if tokenizer is None else _tokenizer(tokenizer),
            chat_template=None if chat_template is None else read_template(chat_template),
            init=None if init is None else model_path(init),
            keep_zeros=keep_zeros,
        )
        made = train_model(job, Lines())
    emit_fit(made.folder, made.fit, as_json=as_json)


def _of_recipe(extra: dict[str, Any]) -> dict[str, Any]:
    """Returns a recipe's table `prepare`; the rest is for training, and checked as that."""
    from miudo.data.pipeline import PrepareSettings
    from miudo.train.settings import FitSettings

    rest = [name for name in extra if name != "prepare"]
    for name in rest:
        if name in {f.name for f in dataclasses.fields(PrepareSettings)}:
            raise ConfigError(
                f"{name} stands beside the table prepare",
                where="settings",
                remedy=f"Write prepare.{name}",
            )
    known = {f.name for f in dataclasses.fields(FitSettings)}
    check_keys(rest, known | {"preset", "init", "chat_template"})
    table = extra["prepare"]
    if not isinstance(table, dict):
        raise ConfigError(f"prepare is {table!r}", where="settings", remedy="Make it a table")
    return table


def _tokenizer(reference: str) -> Any:
    from miudo.errors import TokenizerError
    from miudo.files import open_regular
    from miudo.limits import LIMITS
    from miudo.text.tokenizer import TextTokenizer

    path = model_path(reference)
    if path.suffix == ".json":
        with open_regular(path, TokenizerError) as file:
            return TextTokenizer.from_json(file.read(LIMITS.json_bytes), where=path)
    from miudo.formats import open_model

    model = open_model(path)
    if model.tokenizer is None:
        raise TokenizerError("the model has no tokenizer", where=path)
    return TextTokenizer(model.tokenizer)


def _say(line: str) -> None:
    click.echo(line, err=True)
