"""`miudo finetune` and `miudo merge`.

For: a model learns from chats or text of yours; an adapter becomes part of its model.
Not for: the training itself (`miudo.train.finetune`).
Read next: `miudo.train.finetune`, `miudo.train.merge`.
"""

from __future__ import annotations

from pathlib import Path

import click

from miudo.cli.options import emit, verb

__all__ = ["merge"]


@verb("merge")
@click.argument("model")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--keep-zeros", is_flag=True, help="Leave weights that are exactly zero (pruned) at zero."
)
@click.option(
    "--dtype",
    type=click.Choice(["F32", "F16", "BF16"], case_sensitive=False),
    default="F32",
    show_default=True,
    help="How numbers lie.",
)
def merge(
    model: str, *, adapter: Path, out: Path, keep_zeros: bool, dtype: str, as_json: bool
) -> None:
    """Add ADAPTER, a PEFT folder, into MODEL's weights and write the model's folder."""
    from miudo.hub.resolve import resolve
    from miudo.names import parse_reference
    from miudo.tensors import DType
    from miudo.train.merge import merge_adapter

    path = resolve(parse_reference(model))
    made = merge_adapter(path, adapter, out, keep_zeros=keep_zeros, dtype=DType(dtype))
    text = "\n".join([f"model  {made.path}", *(f"note   {note}" for note in made.notes)])
    emit({"schema": 1, "model": str(made.path), "notes": made.notes}, text, as_json=as_json)
