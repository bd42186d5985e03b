"""What verbs that train share: text, folder, length of the run, resuming, its result.

For: `train`, `finetune`, `distill` and `prune`, which all end in one training loop.
Not for: the settings themselves (`miudo.train.settings`).
Read next: `miudo.cli.making`, `miudo.cli.shrinking`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from miudo.cli.options import emit
from miudo.cli.settings import check_keys, make_settings
from miudo.errors import UsageError

if TYPE_CHECKING:
    from miudo.data.pipeline import PrepareSettings
    from miudo.records import Record
    from miudo.train.loop import FitResult
    from miudo.train.settings import FitSettings

__all__ = [
    "data_option",
    "emit_fit",
    "length_options",
    "require_data",
    "run_options",
    "run_settings",
    "typed",
    "zeros_option",
]

F = TypeVar("F", bound=Callable[..., Any])

data_option = click.option(
    "--data", multiple=True, help="Text (file, folder, glob, -), or one data folder."
)

zeros_option = click.option(
    "--keep-zeros/--free-zeros",
    default=None,
    help="Whether a pruned model's zeros stay; default: as its record says.",
)

_OUT = click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the run."
)
_LENGTH_OPTIONS = (
    click.option("--tokens", type=int, help="Length of the run in tokens,"),
    click.option("--steps", type=int, help="or in steps,"),
    click.option("--minutes", type=float, help="or in minutes, made steps once at the start."),
    click.option("--seed", type=int, help="Seed of weights and order."),
    click.option("--batch-size", type=int, help="Rows of a batch."),
    click.option("--length", type=int, help="Tokens of a row."),
    click.option("--resume", is_flag=True, help="Go on with the run in --out."),
)


def run_options(function: F) -> F:
    """Adds the options of a training run."""
    return _OUT(length_options(function))


def length_options(function: F) -> F:
    """Adds the options of a training run, but for the folder that it writes."""
    for option in reversed(_LENGTH_OPTIONS):
        function = option(function)
    return function


def typed(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of `flags` that stand on the command line, not in a file."""
    context = click.get_current_context(silent=True)
    if context is None:
        return {}
    source = click.core.ParameterSource.COMMANDLINE
    return {k: v for k, v in flags.items() if context.get_parameter_source(k) is source}


def require_data(data: tuple[str, ...], packing: PrepareSettings | None = None) -> None:
    """Raises UsageError without any text; the sources of `packing` are text too."""
    if not data and not (packing and packing.sources):
        raise UsageError(
            "no text is named",
            where="--data",
            remedy="Give --data FILE or FOLDER, or a --config with prepare.sources",
        )


def run_settings(
    extra: Mapping[str, Any], flags: Mapping[str, Any]
) -> tuple[FitSettings, PrepareSettings]:
    """Returns the settings of the run and of its text from flags, `--set` and a file.

    The text's lie in the table `prepare`. Raises ConfigError for unknown or wrong ones.
    """
    from miudo.data.pipeline import PrepareSettings
    from miudo.train.settings import FitSettings

    given = {name: value for name, value in flags.items() if value is not None}
    lengths = {"tokens", "steps", "minutes"}
    if chosen := lengths & set(typed(given)):
        # What is typed stands above the length that a recipe has.
        given = {name: value for name, value in given.items() if name not in lengths - chosen}
    rest = {name: value for name, value in extra.items() if name != "prepare"}
    # Told here, where `prepare` is a key like the others.
    check_keys(rest, {f.name for f in dataclasses.fields(FitSettings)} | {"prepare"})
    fit = make_settings(FitSettings, {**rest, **given}, where="training settings")
    packing = make_settings(PrepareSettings, extra.get("prepare", {}), where="prepare")
    return fit, packing


def emit_fit(
    model: Path,
    fit: FitResult | None,
    *,
    as_json: bool,
    kind: str = "model",
    record: Record | None = None,
) -> None:
    """Prints where the model (or `kind`) lies, how its run ended, and what its record notes."""
    value: dict[str, Any] = {"schema": 1, kind: str(model)}
    lines = [f"{kind:<15}{model}"]
    if fit is not None:
        value["fit"] = {**dataclasses.asdict(fit), "tokens_per_s": fit.tokens_per_s}
        held_out = "none" if fit.held_out_loss is None else f"{fit.held_out_loss:.4f} nats a token"
        lines += [
            f"objective      {fit.loss:.4f}, what the training made small",
            f"held-out loss  {held_out}, cross-entropy",
            f"run            {fit.steps:,} steps, {fit.tokens:,} tokens in {fit.elapsed_s:.0f} s, "
            f"{fit.tokens_per_s:,.0f} tokens/s",
        ]
    if record is not None:
        value["notes"] = list(record.notes)
        lines += [f"note           {note}" for note in record.notes]
    emit(value, "\n".join(lines), as_json=as_json)
