"""A restrictive licence, stated on standard error before a model is used, once a model.

For: `miudo pull` and `miudo run`.
Not for: what licences ask for (`miudo.hub.licences`).
Read next: `miudo.hub.licences`.
"""

from __future__ import annotations

from pathlib import Path

import click

from miudo.cli.options import printable
from miudo.hub.catalogue import load_catalogue
from miudo.hub.folders import home_folder
from miudo.hub.licences import Licence, state_once
from miudo.hub.resolve import on_hub
from miudo.names import LocalRef, parse_reference
from miudo.records import Record

__all__ = ["catalogue_licence", "state_licence", "state_licence_of_model"]


def state_licence(licence: Licence, about: str) -> None:
    """Says what `licence` restricts, if it does and was not said of `about` before."""
    sentence = state_once(home_folder() / "licences.json", licence, about)
    if sentence is not None:
        click.secho(printable(sentence), bold=True, err=True)


def state_licence_of_model(reference: str, path: Path, record: Record | None) -> None:
    """Says it for a model that is about to run: by its record, else by the catalogue."""
    parsed = parse_reference(reference)
    stated = None if record is None else record.licence
    if isinstance(parsed, LocalRef) and stated is None:
        return
    licence = load_catalogue().licences.get(stated or "") or catalogue_licence(reference)
    if licence is not None:
        source = on_hub(parsed)
        about = str(path.resolve()) if isinstance(parsed, LocalRef) else str(parsed)
        state_licence(licence, about if source is None else source.repo_id)


def catalogue_licence(reference: str) -> Licence | None:
    """Returns the licence that the catalogue has for a model of the hub, None for others."""
    source = on_hub(parse_reference(reference))
    entry = None if source is None else load_catalogue().of_repository(source.repo_id)
    return None if entry is None else entry.licence
