"""`miudo distill`, `miudo prune`, `miudo quantize`.

For: a smaller model out of a big one.
Not for: the methods themselves (`miudo.compress`).
Read next: `miudo.compress.verbs`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from miudo.cli.options import BLOCK_TYPES, emit, verb
from miudo.cli.settings import check_table, make_settings
from miudo.cli.teaching import chosen_way, way_options
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
    from miudo.compress.distill.terms import DistillSettings, Term
    from miudo.compress.method import Method

__all__ = ["distill", "prune", "quantize"]

F = TypeVar("F", bound=Callable[..., Any])

_LOSSES = (
    "forward-kl",
    "reverse-kl",
    "jensen-shannon",
    "skew-kl",
    "skew-reverse-kl",
    "total-variation",
)
"""As `miudo.compress.distill.divergence.Divergence` has them, which PyTorch would come with."""

_LOSS_OPTIONS = (
    click.option("--loss", type=click.Choice(_LOSSES), help="How distributions are compared."),
    click.option("--temperature", type=float, help="Of both distributions; default 2."),
    click.option("--alpha", type=float, help="Weight of the teacher against the text; 0.5."),
    click.option(
        "--features",
        type=click.Choice(("uniform", "last", "surviving")),
        help="Learn hidden states too, at first: which of the teacher's layers teach.",
    ),
    click.option("--shared-vocab", type=int, help="Ids in use, where one model pads them."),
)


def _loss_options(function: F) -> F:
    """Adds what a student learns by; a file's `terms` say it at length."""
    for option in reversed(_LOSS_OPTIONS):
        function = option(function)
    return function


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
@click.option("--student-layers", help="Begin with these layers of TEACHER instead: 0,2,5.")
@click.option("--teacher-too", multiple=True, help="A further teacher, of the same tokenizer.")
@_loss_options
@way_options
@run_options
def distill(  # noqa: PLR0913 - one parameter an option
    teacher: str,
    *,
    data: tuple[str, ...],
    student: str,
    start: str | None,
    student_layers: str | None,
    teacher_too: tuple[str, ...],
    loss: str | None,
    temperature: float | None,
    alpha: float | None,
    features: str | None,
    shared_vocab: int | None,
    cache: Path | None,
    on_policy: float | None,
    cross: str | None,
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

    flags: dict[str, Any] = {
        "loss": loss,
        "temperature": temperature,
        "alpha": alpha,
        "features": features,
    }
    way = chosen_way(extra, flags, cache=cache, on_policy=on_policy, cross=cross)
    if cache is not None and temperature is None and "terms" not in extra:
        flags["temperature"] = 1.0  # flattened, most of a distribution lies outside its top
    learned = _learned(extra, shared_vocab, **({} if cross else flags))
    settings, packing = run_settings(extra, length)
    require_data(data, packing)
    job = DistillJob(
        teacher=model_path(teacher),
        inputs=data,
        out=out,
        fit=settings,
        student=_share_or_preset(student),
        start=None if start is None else model_path(start),
        student_layers=_whole_numbers(student_layers, "--student-layers"),
        more_teachers=tuple(model_path(name) for name in teacher_too),
        loss=learned,
        way=way,
        prepare=packing,
    )
    made = run_distill(job, Lines(), resume=resume)
    emit_fit(made.path, made.fit, as_json=as_json)


@verb("prune", takes_settings=True)
@click.argument("model")
@data_option
@click.option("--depth", type=int, help="Take out so many layers.")
@click.option("--width", type=float, help="Keep this share of the feed-forward neurons.")
@_loss_options
@run_options
def prune(  # noqa: PLR0913 - one parameter an option
    model: str,
    *,
    data: tuple[str, ...],
    depth: int | None,
    width: float | None,
    loss: str | None,
    temperature: float | None,
    alpha: float | None,
    features: str | None,
    shared_vocab: int | None,
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
    learned = _learned(
        extra,
        shared_vocab,
        loss=loss,
        temperature=temperature,
        alpha=alpha,
        features=features,
    )
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
        loss=learned,
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


def _learned(extra: dict[str, Any], shared_vocab: int | None, **flags: Any) -> DistillSettings:
    """Returns what is learned: by flags, or by a file's `terms`.

    Raises UsageError for both, ConfigError for wrong values.
    """
    from miudo.compress.distill.divergence import Divergence
    from miudo.compress.distill.terms import DistillSettings, LayerMap

    rest: dict[str, Any] = {
        n: extra.pop(n) for n in ("teacher_weights", "shared_vocab") if n in extra
    }
    rest |= {} if shared_vocab is None else {"shared_vocab": shared_vocab}
    given = {name: value for name, value in flags.items() if value is not None}
    if "terms" in extra:
        if given:
            raise UsageError(
                "the terms of the file say it all",
                where=", ".join(f"--{name}" for name in given),
                remedy="Leave the flags out, or the terms",
            )
        terms = _terms(extra.pop("terms"))
    else:
        kinds = {"loss": Divergence, "features": LayerMap}
        values: dict[str, Any] = {n: kinds[n](v) if n in kinds else v for n, v in given.items()}
        terms = DistillSettings.of(**values).terms
    return dataclasses.replace(make_settings(DistillSettings, rest, where="loss"), terms=terms)


def _terms(tables: object) -> tuple[Term, ...]:
    from miudo.compress.distill.terms import TextTerm, term_class

    if not isinstance(tables, list):
        raise UsageError("terms is no list", where="terms", remedy="Write each as [[terms]]")
    made = []
    for i, table in enumerate(tables, start=1):
        where = f"terms, number {i}"
        check_table(table, where=where)
        kind = term_class(table.get("kind"))
        values = {k: v for k, v in table.items() if k != "kind" or kind is not TextTerm}
        made.append(make_settings(kind, values, where=where))
    return tuple(made)


def _whole_numbers(text: str | None, where: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(
            f"{text!r} is no list of numbers", where=where, remedy="Write 0,2,5"
        ) from None


def _share_or_preset(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
