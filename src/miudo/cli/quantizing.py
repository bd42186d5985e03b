"""`miudo quantize`.

For: a model's weights in fewer bits, as one GGUF file, by one of several methods.
Not for: the methods themselves (`miudo.compress.quantize`).
Read next: `miudo.compress.quantizing`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.options import BLOCK_TYPES, complete_model, emit, parse_size, verb
from miudo.cli.settings import check_keys, make_settings
from miudo.cli.training_options import data_option
from miudo.errors import UsageError
from miudo.hub.resolve import model_path

if TYPE_CHECKING:
    from miudo.compress.method import Quantizer

__all__ = ["quantize"]

_METHODS = ("nearest", "importance", "gptq", "awq", "learned")


@verb("quantize", takes_settings=True)
@click.argument("model", shell_complete=complete_model)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write: .gguf.")
@click.option(
    "--dtype",
    type=click.Choice([*BLOCK_TYPES, "F16", "BF16"], case_sensitive=False),
    help="How matrices are stored.  [default: Q8_0]",
)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    help="How they are rounded; all but nearest read --data.  [default: nearest]",
)
@data_option
@click.option("--max-size", help="Choose types so that the file is no larger: 4MB.")
@click.option("--rotate", type=int, metavar="SEED", help="Rotate the model first, where exact.")
@click.option(
    "--sparse",
    is_flag=True,
    help="Store pruned matrices without zeros where that is smaller (Q4_0, Q8_0; only miudo"
    " reads the file).",
)
def quantize(  # noqa: PLR0913 - one parameter an option
    model: str,
    *,
    out: Path,
    dtype: str | None,
    method: str | None,
    data: tuple[str, ...],
    max_size: str | None,
    rotate: int | None,
    sparse: bool,
    as_json: bool,
    extra: dict[str, Any],
) -> None:
    """Round MODEL's weights to 2 to 8 bits (or 16) and write one GGUF file.

    Further settings of a method, such as steps, are given by --set.
    """
    from miudo.compress.jobs import QuantizeJob
    from miudo.compress.quantizing import run_quantize
    from miudo.data.pipeline import PrepareSettings
    from miudo.train.progress import Lines

    if sparse and dtype not in ("Q4_0", "Q8_0"):
        raise UsageError(
            f"{dtype or 'a mixture of types'} has no sparse form",
            where="--sparse",
            remedy="Give --dtype Q4_0 or Q8_0",
        )
    names = ("calibration_tokens", "calibration_length")
    counts = {name: extra.pop(name) for name in names if name in extra}
    packing = make_settings(PrepareSettings, extra.pop("prepare", {}), where="prepare")
    job = QuantizeJob(
        model=model_path(model),
        out=out,
        method=_method(method, dtype, extra, mixed=max_size is not None),
        inputs=data,
        rotation_seed=rotate,
        max_bytes=None if max_size is None else parse_size(max_size, "--max-size"),
        sparse=sparse,
        prepare=packing,
        **counts,
    )
    made = run_quantize(job, Lines())
    (report,) = made.reports
    counted = dataclasses.asdict(report)
    del counted["changes"]
    lines = [
        f"model            {made.path}",
        f"bits per weight  {report.bits_per_weight:.3f}",
        f"weights          {report.bytes_after / 1e6:,.2f} MB, as F32 "
        f"{report.bytes_before / 1e6:,.2f} MB",
        f"file             {made.path.stat().st_size / 1e6:,.2f} MB",
        *(f"note             {note}" for note in made.record.notes),
    ]
    value = {"schema": 1, "model": str(made.path), **counted, "notes": list(made.record.notes)}
    emit({**value, "bits_per_weight": report.bits_per_weight}, "\n".join(lines), as_json=as_json)


def _method(
    name: str | None, dtype: str | None, extra: dict[str, Any], *, mixed: bool
) -> Quantizer:
    """Returns the method; what is in `extra` are its own settings."""
    from miudo.compress.catalogue import METHODS

    if not mixed:
        kind = METHODS[name or "nearest"]
        given = {"dtype": dtype or "Q8_0"}
        made: Quantizer = make_settings(kind, {**extra, **given}, where=f"{kind.name}")
        return made
    if dtype is not None or name not in (None, "importance", "gptq"):
        wrong = f"--method {name}" if dtype is None else "--dtype"
        raise UsageError(
            f"--max-size and {wrong} do not go together",
            remedy="With --max-size types are chosen, rounded by importance or gptq",
        )
    check_keys(extra, ("types", "rounding", "propagation"))
    rounding = {} if name is None else {"rounding": name}
    chosen: Quantizer = make_settings(METHODS["mixed"], {**extra, **rounding}, where="mixed")
    return chosen
