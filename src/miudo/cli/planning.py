"""`miudo shrink`.

For: teacher, text and a budget in; one file and a report out.
Not for: the search (`miudo.shrink.search`).
Read next: `miudo.shrink.search`.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.options import emit, parse_size, printable, verb
from miudo.cli.settings import check_keys, make_settings
from miudo.cli.training_options import data_option
from miudo.errors import UsageError
from miudo.hub.resolve import model_path

if TYPE_CHECKING:
    from miudo.shrink.jobs import ShrinkJob

__all__ = ["parse_share", "shrink"]

_ORDERS = (
    "search",
    "cut-round",
    "cut-learn-round",
    "cut-learn-cut-learn-round",
    "student-learn-round",
    "student-learn-cut-round",
    "sparsify-round",
    "cut-sparsify-learn-round",
    "cut-trained-round",
    "cut-learn-trained-round",
)
"""Those of `miudo.shrink.candidates.Order`, named here so that help needs no PyTorch."""


@verb("shrink", takes_settings=True)
@click.argument("teacher")
@data_option
@click.option("--max-size", metavar="SIZE", help="Bytes of the file at most: 40MB, 900KiB.")
@click.option("--min-speed", type=float, help="New tokens a second here, at least.")
@click.option("--max-ppl-increase", metavar="SHARE", help="Perplexity above the teacher's: 5%.")
@click.option("--energy", type=float, help="Joules a new token at most; needs a counter.")
@click.option("--minutes", type=float, help="For all of it, about.  [default: 20]")
@click.option("--steps", type=int, help="Instead: steps that the last candidates learn for.")
@click.option(
    "--order",
    type=click.Choice(_ORDERS),
    default="search",
    show_default=True,
    help="Order of cutting, learning and rounding.",
)
@click.option(
    "--prefer",
    type=click.Choice(["quality", "size", "speed"]),
    default="quality",
    show_default=True,
    help="What decides between candidates within the budget.",
)
@click.option("--tasks", help="Score these tasks too, with --task-data: blimp,hellaswag.")
@click.option("--task-data", multiple=True, help="Files and folders of the tasks.")
@click.option("--seed", type=int, help="Seed of weights and order.")
@click.option("--seeds", type=int, help="Train the chosen one and its controls so often.")
@click.option("--batch-size", type=int, help="Rows of a batch.")
@click.option("--length", type=int, help="Tokens of a row.")
@click.option("--threads", type=int, help="Threads that files are run on.")
@click.option("--dry-run", is_flag=True, help="Print plan, memory and time; write nothing.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for all that is made; the same command goes on after a stop.",
)
def shrink(  # noqa: PLR0913 - one parameter an option
    teacher: str,
    *,
    data: tuple[str, ...],
    max_size: str | None,
    min_speed: float | None,
    max_ppl_increase: str | None,
    energy: float | None,
    order: str,
    tasks: str | None,
    task_data: tuple[str, ...],
    dry_run: bool,
    out: Path,
    extra: dict[str, Any],
    as_json: bool,
    **options: Any,
) -> None:
    """Make TEACHER as small as a budget asks, and prove what was kept.

    Many candidates (fewer layers, narrower ones, fewer bits, in several orders) are predicted,
    the best learn from TEACHER on --data, the best of those are measured beside their controls.
    OUT/model.gguf is the chosen one, OUT/report.html the proof. A budget that cannot be met ends
    in exit code 3 and says what would do.
    """
    from miudo.shrink.budget import Budget
    from miudo.train.progress import Lines

    budget = Budget(
        max_size_bytes=None if max_size is None else parse_size(max_size, "--max-size"),
        min_tokens_per_s=min_speed,
        max_ppl_increase=None if max_ppl_increase is None else parse_share(max_ppl_increase),
        max_energy_j=energy,
    )
    flags = {name: value for name, value in options.items() if value is not None}
    flags |= {} if order == "search" else {"order": order}
    flags |= {"tasks": tuple(tasks.split(","))} if tasks else {}
    flags |= {"task_data": task_data} if task_data else {}
    job = _job(model_path(teacher), data, out, budget, flags, extra)
    if dry_run:
        from miudo.shrink.plan import plan_shrink

        plan = plan_shrink(job, Lines())
        emit(plan.to_json(), printable(plan.text()), as_json=as_json)
        return
    from miudo.shrink.search import run_shrink

    try:
        result = run_shrink(job, Lines())
    except KeyboardInterrupt as stop:
        text = "stopped; what was done is kept, and the same command goes on from there"
        raise _Stopped(text, int(getattr(stop, "exit_code", 130))) from stop
    emit(result.to_json(), printable(result.text()), as_json=as_json)


def parse_share(text: str) -> float:
    """Returns 0.05 for `5%` or `0.05`. Raises UsageError for anything else."""
    match = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,9})?)\s*(%?)\s*", text)
    if match is None:
        raise UsageError(
            f"{text[:40]!r} is no share", where="--max-ppl-increase", remedy="Write 5% or 0.05"
        )
    share = float(match[1]) / (100.0 if match[2] else 1.0)
    if share > 1.0 and not match[2]:
        raise UsageError(
            f"{text.strip()} would be {share:.0%}",
            where="--max-ppl-increase",
            remedy=f"Write {text.strip()}%, or {share:.0%} if that is meant",
        )
    return share


class _Stopped(KeyboardInterrupt):
    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def _job(
    teacher: Path,
    data: tuple[str, ...],
    out: Path,
    budget: Any,
    flags: dict[str, Any],
    extra: dict[str, Any],
) -> ShrinkJob:
    from miudo.data.pipeline import PrepareSettings
    from miudo.shrink.jobs import ShrinkJob, ShrinkSettings

    rest = {name: value for name, value in extra.items() if name != "prepare"}
    check_keys(rest, {f.name for f in dataclasses.fields(ShrinkSettings)} | {"prepare"})
    settings = make_settings(ShrinkSettings, {**rest, **flags}, where="shrink settings")
    prepare = make_settings(PrepareSettings, extra.get("prepare", {}), where="prepare")
    return ShrinkJob(teacher, data, out, budget, settings, prepare)
