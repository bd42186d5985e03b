"""A restrictive licence, stated on standard error before a model is used, once a model.

For: `miudo pull` and `miudo run`.
Not for: what licences ask for (`miudo.hub.licences`).
Read next: `miudo.hub.licences`.
"""

from __future__ import annotations

from pathlib import Path

import click

from miudo.cli.options import printable
from miudo.hub.licences import Licence, state_once
from miudo.hub.store import home_folder
from miudo.names import LocalRef, parse_reference
from miudo.records import Record

__all__ = ["state_licence", "state_licence_of_model"]


def state_licence(licence: Licence, about: str) -> None:
    """Says what `licence` restricts, if it does and was not said of `about` before."""
    sentence = state_once(home_folder() / "licences.json", licence, about)
    if sentence is not None:
        click.secho(printable(sentence), bold=True, err=True)


def state_licence_of_model(reference: str, path: Path, record: Record | None) -> None:
    """Says it for a model that is about to run: by its record, else by the catalogue."""
    from miudo.hub.catalogue import load_catalogue
    from miudo.hub.resolve import on_hub

    parsed = parse_reference(reference)
    stated = None if record is None else record.licence
    if isinstance(parsed, LocalRef) and stated is None:
        return
    catalogue = load_catalogue()
    source = on_hub(parsed)
    licence = catalogue.licences.get(stated or "")
    if licence is None and source is not None:
        entry = catalogue.of_repository(source.repo_id)
        licence = None if entry is None else entry.licence
    if licence is not None:
        about = str(path.resolve()) if isinstance(parsed, LocalRef) else str(parsed)
        state_licence(licence, about if source is None else source.repo_id)
