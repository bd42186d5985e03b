"""`miudo select`: the part of a text from which a student has most to learn.

For: choosing documents by two models.
Not for: scoring (`miudo.data.select`).
Read next: `miudo.data.select`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.options import emit, verb
from miudo.cli.settings import check_keys, make_settings
from miudo.hub.resolve import model_path

if TYPE_CHECKING:
    from miudo.data.select import Scorer

__all__ = ["select"]

_SHOWN_EVERY = 100


@verb("select", takes_settings=True)
@click.option("--data", multiple=True, required=True, help="Text: files, folders, globs, -.")
@click.option("--teacher", required=True, metavar="MODEL", help="A big model.")
@click.option("--reference", required=True, metavar="MODEL", help="A small one, of the same text.")
@click.option("--keep", type=float, default=0.5, show_default=True, help="Share of documents.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="File to write: NAME.jsonl."
)
@click.option("--resume", is_flag=True, help="Go on with scores made before.")
def select(  # noqa: PLR0913 - one parameter an option
    data: tuple[str, ...],
    *,
    teacher: str,
    reference: str,
    keep: float,
    out: Path,
    resume: bool,
    as_json: bool,
    extra: dict[str, Any],
) -> None:
    """Keep the documents that TEACHER finds far likelier than REFERENCE does.

    What is left out any small model knows already, or none can know. Tokenizers may differ. How
    files become documents goes by --set read.split=line and the like.
    """
    from miudo.data.select import select as run
    from miudo.data.sources import ReadSettings

    check_keys(extra, {"read"})
    read = make_settings(ReadSettings, extra.get("read", {}), where="read")

    def note(scored: int) -> None:
        if scored % _SHOWN_EVERY == 0:
            click.echo(f"{scored:,} documents", err=True)

    models = _scorer(teacher, "teacher"), _scorer(reference, "reference")
    report = run(*models, data, out, keep=keep, read=read, resume=resume, note=note)
    lines = [
        f"text        {out}",
        f"documents   {report.kept:,} of {report.documents:,}",
        f"mean score  {report.mean_score_kept:.4f} nats a byte, of all {report.mean_score:.4f}",
    ]
    value = {"schema": 1, "text": str(out), **dataclasses.asdict(report)}
    emit(value, "\n".join(lines), as_json=as_json)


def _scorer(reference: str, role: str) -> Scorer:
    from miudo.data.select import Scorer
    from miudo.evaluate.loading import load_model
    from miudo.formats.export import weights_sha256
    from miudo.records import Artefact

    path = model_path(reference)
    loaded = load_model(path)
    parents = () if loaded.model.record is None else (loaded.model.record,)
    artefact = Artefact(role, path.name, weights_sha256(path))
    return Scorer(loaded.engine, loaded.tokenizer, artefact, parents)
