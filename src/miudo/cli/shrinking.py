"""`miudo distill`, `miudo prune`, `miudo quantize`.

For: a smaller model out of a big one.
Not for: the methods themselves (`miudo.compress`).
Read next: `miudo.compress.verbs`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.options import BLOCK_TYPES, emit, verb
from miudo.cli.settings import make_settings
from miudo.cli.training_options import (
    data_option,
    emit_fit,
    require_data,
    run_options,
    run_settings,
    zeros_option,
)
from miudo.errors import UsageError
from miudo.hub.resolve import model_path

if TYPE_CHECKING:
    from miudo.compress.distill.response import ResponseSettings
    from miudo.compress.method import Method

__all__ = ["distill", "prune", "quantize"]

_temperature = click.option("--temperature", type=float, help="Of both distributions.")
_PARTS = ("depth", "hidden", "kv_groups", "heads", "width", "sparsity", "pattern", "method")
_alpha = click.option("--alpha", type=float, help="Weight of the teacher against the text.")


@verb("distill", takes_settings=True)
@click.argument("teacher")
@data_option
@click.option(
    "--student",
    default="0.25",
    show_default=True,
    help="Share of the teacher's non-embedding parameters, or a preset.",
)
@click.option("--start", help="Begin with this model's shape and weights instead.")
@zeros_option
@_temperature
@_alpha
@run_options
def distill(  # noqa: PLR0913 - one parameter an option
    teacher: str,
    *,
    data: tuple[str, ...],
    student: str,
    start: str | None,
    keep_zeros: bool | None,
    temperature: float | None,
    alpha: float | None,
    out: Path,
    resume: bool,
    as_json: bool,
    extra: dict[str, Any],
    **length: Any,
) -> None:
    """Train a smaller model on --data to give TEACHER's distributions."""
    from miudo.compress.jobs import DistillJob
    from miudo.compress.verbs import run_distill
    from miudo.train.progress import Lines

    response = _response(extra, temperature, alpha)
    settings, packing = run_settings(extra, length)
    require_data(data, packing)
    job = DistillJob(
        teacher=model_path(teacher),
        inputs=data,
        out=out,
        fit=settings,
        student=_share_or_preset(student),
        start=None if start is None else model_path(start),
        response=response,
        prepare=packing,
        keep_zeros=keep_zeros,
    )
    made = run_distill(job, Lines(), resume=resume)
    emit_fit(made.path, made.fit, as_json=as_json)


@verb("prune", takes_settings=True)
@click.argument("model")
@data_option
@click.option("--depth", type=int, help="Take out so many layers.")
@click.option("--hidden", type=float, help="Keep this share of the residual stream's channels.")
@click.option("--kv-groups", type=float, help="Keep this share of the key-value groups.")
@click.option("--heads", type=float, help="Keep this share of the heads in each group.")
@click.option("--width", type=float, help="Keep this share of the feed-forward neurons.")
@click.option("--sparsity", type=float, help="Set this share of the weights to zero.")
@click.option("--pattern", help="N:M: of every M weights in a row only N stay, as 2:4.")
@click.option(
    "--method",
    type=click.Choice(["sparsegpt", "wanda", "magnitude"]),
    help="How those weights are chosen; default sparsegpt.",
)
@click.option("--repair", is_flag=True, help="Fit what writes to the stream anew (least squares).")
@zeros_option
@_temperature
@_alpha
@run_options
def prune(  # noqa: PLR0913 - one parameter an option
    model: str,
    *,
    data: tuple[str, ...],
    repair: bool,
    keep_zeros: bool | None,
    temperature: float | None,
    alpha: float | None,
    out: Path,
    resume: bool,
    as_json: bool,
    extra: dict[str, Any],
    **flags: Any,
) -> None:
    """Take parts out of MODEL: layers, channels, heads, neurons, and single weights.

    What matters least on --data goes, in this order: depth, hidden, heads, width, then zeros.
    With --tokens, --steps or --minutes what is left learns again from MODEL itself, and zeros
    stay zeros.
    """
    from miudo.compress.jobs import PruneJob
    from miudo.compress.prune.repair import RIDGE
    from miudo.compress.verbs import run_prune
    from miudo.train.progress import Lines

    methods = _methods(extra, {name: flags.pop(name) for name in _PARTS})
    ridge = extra.pop("repair_ridge", RIDGE if repair else None)
    response = _response(extra, temperature, alpha)
    counts = {n: extra.pop(n) for n in ("calibration_tokens", "calibration_length") if n in extra}
    recovers = any((flags | extra).get(name) is not None for name in ("tokens", "steps", "minutes"))
    # Without a length nothing is learned; one step stands in so that all else is checked.
    settings, packing = run_settings(extra, flags if recovers else {**flags, "steps": 1})
    require_data(data, packing)
    job = PruneJob(
        model=model_path(model),
        inputs=data,
        out=out,
        methods=methods,
        fit=settings if recovers else None,
        response=response,
        prepare=packing,
        repair=ridge,
        keep_zeros=keep_zeros,
        **counts,
    )
    made = run_prune(job, Lines(), resume=resume)
    emit_fit(made.path, made.fit, as_json=as_json)


@verb("quantize")
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write: .gguf.")
@click.option(
    "--dtype",
    type=click.Choice([*BLOCK_TYPES, "F16", "BF16"], case_sensitive=False),
    default="Q8_0",
    show_default=True,
    help="How matrices are stored.",
)
def quantize(model: str, *, out: Path, dtype: str, as_json: bool) -> None:
    """Round MODEL's weights to 4 to 8 bits (or 16) and write one GGUF file."""
    from miudo.compress.verbs import run_quantize
    from miudo.tensors import DType

    made = run_quantize(model_path(model), out, dtype=DType(dtype))
    (report,) = made.reports
    counts = dataclasses.asdict(report)
    del counts["changes"]
    lines = [
        f"model            {made.path}",
        f"bits per weight  {report.bits_per_weight:.3f}",
        f"weights          {report.bytes_after / 1e6:,.2f} MB, were "
        f"{report.bytes_before / 1e6:,.2f} MB",
        *(f"note             {note}" for note in report.notes),
    ]
    value = {"schema": 1, "model": str(made.path), **counts}
    emit({**value, "bits_per_weight": report.bits_per_weight}, "\n".join(lines), as_json=as_json)


def _methods(extra: dict[str, Any], flags: dict[str, Any]) -> tuple[Method, ...]:
    """Returns the pruning methods in their one order.

    The tables `depth_pruning`, `hidden_pruning` ... hold their further settings.
    """
    from miudo.compress.prune.depth import DepthPruning
    from miudo.compress.prune.heads import HeadPruning
    from miudo.compress.prune.hidden import HiddenPruning
    from miudo.compress.prune.sparse import SparsePruning
    from miudo.compress.prune.width import WidthPruning

    heads, groups, pattern = flags["heads"], flags["kv_groups"], _pattern(flags)
    if heads is not None and groups is None:
        groups = 1.0  # not the method's own default: what is not named stays whole
    given: list[tuple[type[Method], dict[str, Any]]] = [
        (DepthPruning, {"drop": flags["depth"]}),
        (HiddenPruning, {"keep": flags["hidden"]}),
        (HeadPruning, {"heads": heads, "groups": groups}),
        (WidthPruning, {"keep": flags["width"]}),
        (SparsePruning, {"pattern": pattern, "method": flags["method"]}),
    ]
    methods: list[Method] = []
    for kind, values in given:
        where = f"{kind.name}_pruning"
        table = extra.pop(where, {})
        typed = {name: value for name, value in values.items() if value is not None}
        if typed or table:
            methods.append(make_settings(kind, {**table, **typed}, where=where))
    return tuple(methods)


def _pattern(flags: dict[str, Any]) -> str | None:
    share, pattern = flags["sparsity"], flags["pattern"]
    if share is None and pattern is None and flags["method"] is not None:
        raise UsageError(
            f"is {flags['method']}, and no weight is to be zero",
            where="--method",
            remedy="Give --sparsity or --pattern",
        )
    if share is not None and pattern is not None:
        kept, _, group = pattern.partition(":")
        if not (kept.isdigit() and group.isdigit() and int(kept) == (1 - share) * int(group)):
            raise UsageError(
                f"is {pattern}, and --sparsity is {share}",
                where="--pattern",
                remedy="Give one of them",
            )
    return pattern if pattern is not None or share is None else str(share)


def _response(
    extra: dict[str, Any], temperature: float | None, alpha: float | None
) -> ResponseSettings:
    from miudo.compress.distill.response import ResponseSettings

    flags = {"temperature": temperature, "alpha": alpha}
    given = {name: value for name, value in flags.items() if value is not None}
    return make_settings(ResponseSettings, {**extra.pop("response", {}), **given}, where="response")


def _share_or_preset(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
