"""`miudo embed`: texts as vectors.

For: comparing and searching texts with what a model makes of them, in files that others read.
Not for: making the vectors (`miudo.engine.embedding`), or over HTTP (`miudo serve`).
Read next: `miudo.engine.embedding`.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from miudo.cli.options import emit, printable, verb
from miudo.cli.prompting import prompt_text
from miudo.errors import RequestError, UsageError
from miudo.hub.resolve import model_path

if TYPE_CHECKING:
    from miudo.engine.embedding import Pooling
    from miudo.evaluate.loading import LoadedModel
    from miudo.protocol import FloatArray

__all__ = ["embed"]

_SHOWN = 4


@verb("embed")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--model", help="Default: the model inside the package.")
@click.option("--pooling", type=click.Choice(["mean", "last"]), default="mean", show_default=True)
@click.option(
    "--as",
    "form",
    type=click.Choice(["jsonl", "csv", "npy"]),
    help="jsonl, as a rule: an object a line. csv: text and numbers. npy: NumPy's, float32.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file.")
@click.option("--force", is_flag=True, help="Replace what is at --out.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the engine.")
def embed(
    texts: tuple[str, ...],
    *,
    model: str | None,
    pooling: str,
    form: str | None,
    out: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Print the vector of each TEXT: the model's last states, their mean or the last, length 1.

    Without TEXT, of each line that is piped in, empty ones too, so that rows stay in step. On a
    terminal: the first numbers, and the cosine with the first text.
    """
    from miudo.evaluate.loading import load_model
    from miudo.files import atomic_write, check_output

    given = _lines() if texts in ((), ("-",)) else list(texts)
    form = form or (None if out is None else _form(out))
    if out is not None:
        if as_json:
            raise UsageError("--json is for standard output", remedy="Leave it or --out out")
        if out.exists() and not flags["force"]:
            raise UsageError("is there already", where=out, remedy="Give another, or --force")
        check_output(out)
    elif form == "npy" and sys.stdout.isatty():
        raise UsageError("npy is not for a terminal", remedy="Give --out FILE.npy")
    loaded = load_model(model_path(model), threads=flags["threads"])
    vectors = _vectors(loaded, given, cast("Pooling", pooling))
    if out is not None:
        content = _written(form or "jsonl", given, vectors)
        atomic_write(out, lambda file: file.write(content))
        return
    if as_json:
        rows = _rows(given, vectors)
        value = {"schema": 1, "model": str(loaded.path), "pooling": pooling}
        emit({**value, "dimensions": vectors.shape[1], "embeddings": rows}, "", as_json=True)
    elif form is None and sys.stdout.isatty():
        click.echo(_told(given, vectors))
    else:
        click.echo(_written(form or "jsonl", given, vectors), nl=False)


def _lines() -> list[str]:
    text = prompt_text(None, exact=True)
    if text is None:
        raise UsageError("no text is given", remedy="Give texts, or pipe in one a line")
    lines = text.removesuffix("\n").split("\n") if text else []
    if not lines:
        raise UsageError("no text came", where="standard input", remedy="Pipe in one a line")
    return [line.removesuffix("\r") for line in lines]


def _form(out: Path) -> str:
    form = out.suffix.removeprefix(".")
    if form not in ("jsonl", "csv", "npy"):
        raise UsageError(
            f"{out.suffix or out.name!r} is no form of vectors",
            where="--out",
            remedy="End it in .jsonl, .csv or .npy, or give --as",
        )
    return form


def _vectors(loaded: LoadedModel, texts: Sequence[str], pooling: Pooling) -> FloatArray:
    """Returns float32 [texts, d_model]. Raises RequestError naming the text that cannot be."""
    import numpy as np

    from miudo.engine.embedding import Embedder
    from miudo.text.prompt import begun

    embedder = Embedder(loaded.engine, loaded.model.weights, adapter=loaded.adapter)
    vectors = np.empty((len(texts), loaded.model.config.d_model), np.float32)
    most = loaded.engine.config.max_positions
    for place, text in enumerate(texts):
        ids = begun(loaded.tokenizer.encode(text), loaded.model.config)
        if not 0 < len(ids) <= most:
            raise RequestError(
                f"has {len(ids)} tokens, allowed 1 to {most}",
                where=f"text {place + 1}",
                remedy="Cut it into parts, or leave it out",
            )
        vectors[place] = embedder.embed(ids, pooling)
    return vectors


def _rows(texts: Sequence[str], vectors: FloatArray) -> list[dict[str, Any]]:
    pairs = zip(texts, vectors, strict=True)
    return [{"text": text, "embedding": [float(x) for x in vector]} for text, vector in pairs]


def _written(form: str, texts: Sequence[str], vectors: FloatArray) -> bytes:
    import numpy as np

    if form == "npy":
        binary = io.BytesIO()
        np.lib.format.write_array(binary, vectors, allow_pickle=False)
        return binary.getvalue()
    if form == "jsonl":
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(texts, vectors))
        return "".join(lines).encode()
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["text", *(f"d{i}" for i in range(vectors.shape[1]))])
    table.writerows([row["text"], *row["embedding"]] for row in _rows(texts, vectors))
    return text.getvalue().encode()


def _told(texts: Sequence[str], vectors: FloatArray) -> str:
    lines = [f"{vectors.shape[1]} numbers each; cosine with the first text, first numbers, text"]
    for text, vector in zip(texts, vectors, strict=True):
        numbers = " ".join(f"{x:+.3f}" for x in vector[:_SHOWN])
        lines.append(f"{float(vector @ vectors[0]):+.3f}   {numbers} ...   {printable(text[:50])}")
    return "\n".join(lines)
