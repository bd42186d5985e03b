"""`miudo prepare` and `miudo train`.

For: text to packed tokens, tokens to a model.
Not for: making a model smaller (`miudo.cli.shrinking`).
Read next: `miudo.data.pipeline`, `miudo.train.pretrain`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from miudo.cli.options import emit, verb
from miudo.cli.settings import make_settings

__all__ = ["prepare", "train"]


@verb("prepare", takes_settings=True)
@click.argument("inputs", nargs=-1, required=True)
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
    """Read INPUTS (files, folders, globs, -), clean them, drop duplicates, pack tokens."""
    from miudo.data.pipeline import PrepareSettings
    from miudo.data.pipeline import prepare as prepare_data

    values = _with_flags(extra, flags)
    settings = make_settings(PrepareSettings, values, where="data settings")
    if keep_duplicates:
        from dataclasses import replace

        settings = replace(settings, dedupe=None)
    found = None if tokenizer is None else _tokenizer(tokenizer)
    data = prepare_data(inputs, out, tokenizer=found, settings=settings, progress=_say)
    counts = {name: data.tokens(name) for name in ("train", "held_out")}
    text = f"{out}: {counts['train']:,} tokens to train on, {counts['held_out']:,} held out"
    emit({"schema": 1, "out": str(out), "tokens": counts}, text, as_json=as_json)


def _with_flags(extra: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Returns `extra` with the flags that were given, each where the settings hold it."""
    values = {key: dict(v) if isinstance(v, dict) else v for key, v in extra.items()}
    for name, value in flags.items():
        if value is None:
            continue
        if name in ("held_out", "seed"):
            values.setdefault("pack", {})[name] = value
        else:
            values[name] = value
    return values


def _tokenizer(reference: str) -> Any:
    from miudo.errors import TokenizerError
    from miudo.files import open_regular
    from miudo.hub.resolve import resolve
    from miudo.limits import LIMITS
    from miudo.names import parse_reference
    from miudo.text.tokenizer import TextTokenizer

    path = resolve(parse_reference(reference))
    if path.suffix == ".json":
        with open_regular(path, TokenizerError) as file:
            return TextTokenizer.from_json(file.read(LIMITS.json_bytes), where=path)
    from miudo.formats import open_model

    model = open_model(path)
    if model.tokenizer_json is None:
        raise TokenizerError("the model has no tokenizer", where=path)
    return TextTokenizer.from_json(model.tokenizer_json, where=path)


def _say(line: str) -> None:
    click.echo(line, err=True)
