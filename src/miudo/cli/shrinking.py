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
)
from miudo.errors import UsageError
from miudo.hub.resolve import model_path

if TYPE_CHECKING:
    from miudo.compress.distill.response import ResponseSettings
    from miudo.compress.method import Method

__all__ = ["distill", "prune", "quantize"]

_temperature = click.option("--temperature", type=float, help="Of both distributions.")
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
@_temperature
@_alpha
@run_options
def distill(  # noqa: PLR0913 - one parameter an option
    teacher: str,
    *,
    data: tuple[str, ...],
    student: str,
    start: str | None,
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
    )
    made = run_distill(job, Lines(), resume=resume)
    emit_fit(made.path, made.fit, as_json=as_json)


@verb("prune", takes_settings=True)
@click.argument("model")
@data_option
@click.option("--depth", type=int, help="Take out so many layers.")
@click.option("--width", type=float, help="Keep this share of the feed-forward neurons.")
@_temperature
@_alpha
@run_options
def prune(  # noqa: PLR0913 - one parameter an option
    model: str,
    *,
    data: tuple[str, ...],
    depth: int | None,
    width: float | None,
    temperature: float | None,
    alpha: float | None,
    out: Path,
    resume: bool,
    as_json: bool,
    extra: dict[str, Any],
    **length: Any,
) -> None:
    """Take layers (--depth) or feed-forward width (--width) out of MODEL.

    What matters least on --data goes. With --tokens, --steps or --minutes what is left learns
    again from MODEL itself.
    """
    from miudo.compress.jobs import PruneJob
    from miudo.compress.verbs import run_prune
    from miudo.train.progress import Lines

    methods = _methods(extra, depth, width)
    response = _response(extra, temperature, alpha)
    counts = {n: extra.pop(n) for n in ("calibration_tokens", "calibration_length") if n in extra}
    recovers = any(
        (length | extra).get(name) is not None for name in ("tokens", "steps", "minutes")
    )
    # Without a length nothing is learned; one step stands in so that all else is checked.
    settings, packing = run_settings(extra, length if recovers else {**length, "steps": 1})
    require_data(data, packing)
    job = PruneJob(
        model=model_path(model),
        inputs=data,
        out=out,
        methods=methods,
        fit=settings if recovers else None,
        response=response,
        prepare=packing,
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
@click.option(
    "--sparse",
    is_flag=True,
    help="Store pruned matrices without zeros where that is smaller (Q4_0, Q8_0; only miudo"
    " reads the file).",
)
def quantize(model: str, *, out: Path, dtype: str, sparse: bool, as_json: bool) -> None:
    """Round MODEL's weights to 4 to 8 bits (or 16) and write one GGUF file."""
    from miudo.compress.verbs import run_quantize
    from miudo.tensors import DType

    if sparse and dtype not in ("Q4_0", "Q8_0"):
        raise UsageError(
            f"{dtype} has no sparse form", where="--sparse", remedy="Give --dtype Q4_0 or Q8_0"
        )
    made = run_quantize(model_path(model), out, dtype=DType(dtype), sparse=sparse)
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


def _methods(extra: dict[str, Any], depth: int | None, width: float | None) -> tuple[Method, ...]:
    """Returns the pruning methods; the tables `depth` and `width` hold their further settings."""
    from miudo.compress.prune.depth import DepthPruning
    from miudo.compress.prune.width import WidthPruning

    methods: list[Method] = []
    depth_table, width_table = extra.pop("depth_pruning", {}), extra.pop("width_pruning", {})
    if depth is not None or depth_table:
        flags = {} if depth is None else {"drop": depth}
        methods.append(make_settings(DepthPruning, {**depth_table, **flags}, where="depth_pruning"))
    if width is not None or width_table:
        share = {} if width is None else {"keep": width}
        methods.append(make_settings(WidthPruning, {**width_table, **share}, where="width_pruning"))
    return tuple(methods)


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
