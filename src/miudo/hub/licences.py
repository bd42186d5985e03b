"""What a licence lets one do, in words, and that it is said once before a model is used.

For: `pull` and `run`, which state a restriction, and the catalogue, which filters by it.
Not for: licences of training text (`miudo.data.mixture`), or advice: the licence's text decides.
Read next: `miudo.hub.catalogue`, whose file holds them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from miudo.errors import MiudoError
from miudo.plain_json import write_json

__all__ = ["Licence", "licence_from_card", "parse_licences", "restriction_of", "state_once"]

_UNSTATED = "NOASSERTION"  # SPDX's word
_UNKNOWN = "miudo does not know its terms: read them before use."
_NONE = "The repository states no licence, so nothing is permitted beyond what the law grants."


@dataclass(frozen=True, slots=True)
class Licence:
    """An SPDX identifier, or LicenseRef- and a name; what it asks for, in words.

    `commercial` is "yes", "conditions", "no", or "unknown". `tags` are the hub's names for it.
    """

    id: str
    commercial: str
    restriction: str | None = None
    tags: tuple[str, ...] = ()
    url: str | None = None


def parse_licences(values: Mapping[str, Any]) -> dict[str, Licence]:
    """Returns the licences of the catalogue's file by identifier."""
    return {
        name: Licence(id=name, **{**given, "tags": tuple(given["tags"])})
        for name, given in values.items()
    }


def licence_from_card(known: Iterable[Licence], tag: object, name: object) -> Licence:
    """Returns the licence that a repository's card states as `license` and `license_name`.

    One that is not known, or none at all, permits nothing that could be said here.
    """
    stated = [t for t in (tag if isinstance(tag, list) else [tag]) if isinstance(t, str)]
    if stated in ([], ["other"], ["unknown"]) and isinstance(name, str):
        stated = [name]
    if not stated:
        return Licence(_UNSTATED, "unknown", _NONE)
    by_tag = {text: licence for licence in known for text in licence.tags}
    found = [by_tag.get(text.lower()) for text in stated]
    if len(found) == 1 and found[0] is not None:
        return found[0]
    word = re.sub(r"[^A-Za-z0-9.-]+", "-", " OR ".join(stated)).strip("-")[:60]
    return Licence(f"LicenseRef-{word or 'unnamed'}", "unknown", _UNKNOWN)


def restriction_of(licence: Licence, about: str) -> str | None:
    """Returns the sentence to print before the model `about` is used, None where none is due."""
    if licence.restriction is None:
        return None
    terms = f" Terms: {licence.url}" if licence.url else ""
    under = "" if licence.id == _UNSTATED else f" is under {licence.id}."
    return f"{about}{under or ':'} {licence.restriction}{terms}"


def state_once(book: Path, licence: Licence, about: str) -> str | None:
    """Returns the sentence of `restriction_of` the first time, and notes in `book` that it was.

    Where the note cannot be kept the sentence comes each time; no work fails for it.
    """
    sentence = restriction_of(licence, about)
    if sentence is None:
        return None
    stated = _read(book)
    if stated.get(about, {}).get("licence") == licence.id:
        return None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with suppress(OSError, MiudoError):
        book.parent.mkdir(parents=True, exist_ok=True)
        write_json(book, {**stated, about: {"licence": licence.id, "stated": now}})
    return sentence


def _read(book: Path) -> dict[str, dict[str, str]]:
    try:
        values = json.loads(book.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: value for name, value in values.items() if isinstance(value, dict)}
