"""`miudo list`, `import`, `cp` and `rm`: the models on this machine.

For: what is here, under which name, from where; bringing one in; taking one away.
Not for: fetching from the hub (`miudo.cli.pulling`).
Read next: `miudo.hub.store`, `miudo.hub.cache`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from miudo.cli.options import complete_model, emit, printable, verb
from miudo.errors import UsageError

__all__ = ["copy", "import_", "list_", "remove"]


@verb("list")
def list_(*, as_json: bool) -> None:
    """List the models on this machine that go by a name: what each is and where it came from.

    Those inside the package, imported ones, and whatever is whole in the cache of the Hugging
    Face hub, whichever program fetched it.
    """
    from miudo.hub.inventory import inventory

    rows = inventory()
    lines = [
        f"{row['name']:<32} {row['size_bytes'] / 1e6:>10,.1f} MB  {row['from']}; "
        f"{row['licence'] or 'licence unknown'}"
        for row in rows
    ]
    emit({"schema": 1, "models": rows}, printable("\n".join(lines)), as_json=as_json)


@verb("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME[:TAG]", help="Default: the name of the folder or file.")
@click.option(
    "--license", "licence", metavar="SPDX", help="Its licence, where its record has none."
)
def import_(path: Path, *, name: str | None, licence: str | None, as_json: bool) -> None:
    """Copy the model at PATH into the store, so that it goes by a name everywhere.

    PATH is a model folder or a .gguf file. It must open, and where it has a record its files
    must have the hashes in it. Only the files that a model needs are copied.
    """
    from miudo.hub.inventory import free_name
    from miudo.hub.store import import_model
    from miudo.records import is_licence

    if licence is not None and not is_licence(licence):
        raise UsageError(
            f"{licence[:60]!r} is no SPDX expression",
            where="--license",
            remedy="Give an identifier such as CC-BY-4.0, or LicenseRef- and a name",
        )
    reference = free_name(path, name)
    stored = import_model(path, reference, licence=licence)
    value = {"schema": 1, "name": str(reference), "path": str(stored.path)}
    emit(value, f"model    {reference}\npath     {stored.path}", as_json=as_json)


@verb("cp")
@click.argument("model", shell_complete=complete_model)
@click.argument("name", metavar="NAME[:TAG]")
def copy(model: str, name: str, *, as_json: bool) -> None:
    """Give MODEL a further NAME in the store.

    What the store has already takes no more room; what lies elsewhere is copied into it.
    """
    from miudo.hub.inventory import free_name
    from miudo.hub.resolve import model_path
    from miudo.hub.store import import_model

    path = model_path(model)
    reference = free_name(path, name)
    stored = import_model(path, reference)
    value = {"schema": 1, "name": str(reference), "path": str(stored.path)}
    emit(value, f"model    {reference}\npath     {stored.path}", as_json=as_json)


@verb("rm")
@click.argument("model", shell_complete=complete_model)
@click.option("--force", is_flag=True, help="Also what another program fetched into the cache.")
def remove(model: str, *, force: bool, as_json: bool) -> None:
    """Delete MODEL, a name of `miudo list`, from the store or the cache of the hub.

    The cache is shared with other programs: what they fetched is left alone without --force.
    """
    from miudo.hub.inventory import remove_model
    from miudo.names import LocalRef, parse_reference

    reference = parse_reference(model)
    if isinstance(reference, LocalRef):
        cure = "Give a name of `miudo list`; a path is yours to delete"
        raise UsageError("is a path, not a name", where=model, remedy=cure)
    freed = remove_model(reference, force=force)
    value: dict[str, Any] = {"schema": 1, "name": model, "freed_bytes": freed}
    emit(value, f"removed {model}, {freed / 1e6:,.1f} MB freed", as_json=as_json)
