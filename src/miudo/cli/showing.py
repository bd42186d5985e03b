"""`miudo show` and `miudo version`.

For: what a model is and how it came to be; versions of what computes.
Not for: measuring a model (`miudo.cli.evaluating`).
Read next: `miudo.registry.describe`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from miudo.cli.options import complete_model, emit, printable, verb
from miudo.cli.templates import read_template, template_option
from miudo.errors import CheckFailedError, MissingError, ModelFileError, UsageError
from miudo.hub.resolve import model_path

if TYPE_CHECKING:
    from miudo.formats import ModelFile

__all__ = ["show", "version"]


@verb("show")
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--verify",
    is_flag=True,
    help="Read every byte: compare the files with their record, look for NaN and infinity.",
)
@click.option(
    "--template", is_flag=True, help="Print the chat template and a short conversation in it."
)
@template_option
def show(
    model: str, *, verify: bool, template: bool, chat_template: str | None, as_json: bool
) -> None:
    """Tell what MODEL is: shape, size, number types, tokenizer, licence, lineage.

    MODEL may be a LoRA adapter: its rank, its matrices, the model it was made for. Of a model
    that is not here, what the catalogue says. With --verify a model that is not what its record
    says, or holds NaN or infinity, ends in exit code 3.
    """
    if chat_template is not None and not template:
        raise UsageError("--chat-template is only shown", remedy="Give --template too")
    if verify and template:
        raise UsageError("--verify and --template are two questions", remedy="Ask one at a time")
    try:
        path = model_path(model)
    except MissingError:
        # The catalogue has neither files to verify nor templates.
        if verify or template or not _show_entry(model, as_json=as_json):
            raise
        return
    from miudo.formats import open_model
    from miudo.formats.adapter import is_adapter
    from miudo.registry.describe import describe, description_text

    if is_adapter(path):
        from miudo.registry.describe_adapter import adapter_text, describe_adapter

        if verify or template:
            flag = "--verify" if verify else "--template"
            raise UsageError("is for models, this is an adapter", where=flag, remedy="Leave it out")
        if as_json:
            emit(describe_adapter(path), "", as_json=True)
        else:
            click.echo(printable(adapter_text(path)))
        return

    found = _verified(path) if verify else open_model(path)
    if template:
        from miudo.registry.describe_template import describe_template, template_text

        source = found.chat_template if chat_template is None else read_template(chat_template)
        told = describe_template(found, source)
        emit(told, printable(template_text(told)), as_json=as_json)
        return
    if as_json:
        emit(describe(found), "", as_json=True)
    else:
        click.echo(printable(description_text(found)))


def _verified(path: Path) -> ModelFile:
    """Opens a model whose bytes are those of its record. Raises CheckFailedError otherwise."""
    from miudo.formats import open_model
    from miudo.formats.hf import verify_file, verify_folder

    try:
        if path.is_dir():
            verify_folder(path)
        else:
            verify_file(path)
        return open_model(path, strict_finite=True)
    except ModelFileError as error:
        raise CheckFailedError(error.what, where=error.where, remedy=error.remedy) from error


def _show_entry(model: str, *, as_json: bool) -> bool:
    """Shows what the catalogue says of a model that is not here; False where it says nothing."""
    from miudo.hub.catalogue import load_catalogue
    from miudo.hub.resolve import on_hub
    from miudo.hub.shown import entries_text, entry_json
    from miudo.names import parse_reference

    source = on_hub(parse_reference(model))
    entry = None if source is None else load_catalogue().of_repository(source.repo_id)
    if entry is None:
        return False
    click.echo(f"{model} is not on this machine; the catalogue says:", err=True)
    emit({"schema": 1, **entry_json(entry)}, entries_text([entry]), as_json=as_json)
    return True


@verb("version")
def version(*, as_json: bool) -> None:
    """Tell the versions of miudo and of what it stands on."""
    from miudo.records import environment

    found = environment()
    emit(found, "\n".join(f"{name:<12} {value}" for name, value in found.items()), as_json=as_json)
