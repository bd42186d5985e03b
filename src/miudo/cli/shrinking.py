"""`miudo distill`, `miudo prune`.

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

from miudo.cli.options import BLOCK_TYPES, complete_model, verb
from miudo.cli.settings import check_table, make_settings
from miudo.cli.teaching import chosen_way, way_options
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
    from miudo.compress.distill.terms import DistillSettings, Term
    from miudo.compress.method import Method

__all__ = ["distill", "prune"]

_PARTS = ("depth", "hidden", "kv_groups", "heads", "width", "sparsity", "pattern", "method")

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
    click.option("--temperature", type=float, help="Of both distributions; default 1."),
    click.option(
        "--alpha",
        type=float,
        help="Weight of the teacher against the text; 0.9 (--cross: 0.5, --dtype: 1).",
    ),
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
    help="Share of the teacher's non-embedding parameters (default 0.25), or a preset.",
)
@click.option(
    "--dtype",
    type=click.Choice(BLOCK_TYPES, case_sensitive=False),
    help="Train the student, TEACHER itself unless another is named, to be rounded to this type.",
)
@click.option(
    "--tables",
    type=click.Choice(BLOCK_TYPES, case_sensitive=False),
    help="Another type than --dtype for token table and head.",
)
@click.option("--start", help="Begin with this model's shape and weights instead.")
@click.option("--student-layers", help="Begin with these layers of TEACHER instead: 0,2,5.")
@click.option("--teacher-too", multiple=True, help="A further teacher, of the same tokenizer.")
@zeros_option
@_loss_options
@way_options
@run_options
def distill(  # noqa: PLR0913 - one parameter an option
    teacher: str,
    *,
    data: tuple[str, ...],
    student: str | None,
    dtype: str | None,
    tables: str | None,
    start: str | None,
    student_layers: str | None,
    teacher_too: tuple[str, ...],
    loss: str | None,
    keep_zeros: bool | None,
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
    """Train a smaller model on --data to give TEACHER's distributions.

    With --dtype the student learns while its weights are rounded, and becomes a GGUF file.
    """
    from miudo.compress.jobs import DistillJob
    from miudo.compress.quantize.trained import ROUNDED_FIT
    from miudo.compress.verbs import run_distill
    from miudo.tensors import DType
    from miudo.train.progress import Lines

    if dtype is not None:
        extra = {**ROUNDED_FIT, **extra}
        if "terms" not in extra and alpha is None:  # the teacher alone, without text
            alpha = 1.0
    flags: dict[str, Any] = {"loss": loss, "temperature": temperature}
    flags |= {"alpha": alpha, "features": features}
    way = chosen_way(extra, flags, cache=cache, on_policy=on_policy, cross=cross)
    learned = _learned(extra, shared_vocab, **({} if cross else flags))
    settings, packing = run_settings(extra, length)
    require_data(data, packing)
    job = DistillJob(
        teacher=model_path(teacher),
        inputs=data,
        out=out,
        fit=settings,
        student=None if student is None else _share_or_preset(student),
        start=None if start is None else model_path(start),
        student_layers=_whole_numbers(student_layers, "--student-layers"),
        more_teachers=tuple(model_path(name) for name in teacher_too),
        loss=learned,
        way=way,
        prepare=packing,
        keep_zeros=keep_zeros,
        dtype=None if dtype is None else DType(dtype),
        tables=None if tables is None else DType(tables),
    )
    made = run_distill(job, Lines(), resume=resume)
    emit_fit(made.path, made.fit, as_json=as_json, record=made.record)


@verb("prune", takes_settings=True)
@click.argument("model", shell_complete=complete_model)
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
@_loss_options
@run_options
def prune(  # noqa: PLR0913 - one parameter an option
    model: str,
    *,
    data: tuple[str, ...],
    loss: str | None,
    repair: bool,
    keep_zeros: bool | None,
    temperature: float | None,
    alpha: float | None,
    features: str | None,
    shared_vocab: int | None,
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
    learned = _learned(
        extra,
        shared_vocab,
        loss=loss,
        temperature=temperature,
        alpha=alpha,
        features=features,
    )
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
        loss=learned,
        prepare=packing,
        repair=ridge,
        keep_zeros=keep_zeros,
        **counts,
    )
    made = run_prune(job, Lines(), resume=resume)
    emit_fit(made.path, made.fit, as_json=as_json, record=made.record)


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
    if share is not None and not 0.0 < share < 1.0:
        raise UsageError(
            f"is {share:g}", where="--sparsity", remedy="Give a share between 0 and 1: 0.5 is half"
        )
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
