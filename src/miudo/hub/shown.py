"""The catalogue for people and for programs: text and plain JSON values.

For: `miudo catalog`, and `miudo show` of a model that is not here yet.
Not for: models that are here (`miudo.registry.describe`).
Read next: `miudo.hub.catalogue`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from miudo.hub.catalogue import Entry
from miudo.hub.memory import PRECISIONS

__all__ = ["CONTEXT", "entries_text", "entry_json"]

CONTEXT = 4096
"""Tokens that keys and values are computed for where nothing else is said."""

_COMMERCIAL = {
    "yes": "commercial use allowed",
    "conditions": "commercial use on conditions",
    "no": "no commercial use",
    "unknown": "terms not known to miudo",
}


def entry_json(entry: Entry, context: int = CONTEXT) -> dict[str, Any]:
    """Returns an entry as plain JSON values; memory is computed from the shape."""
    used = min(context, entry.shape.max_positions)
    return {
        "name": entry.reference,
        "family": entry.family,
        "hub": str(entry.hub),
        "base": None if entry.base is None else str(entry.base),
        "parameters": entry.size.parameters,
        "n_layers": entry.shape.n_layers,
        "d_model": entry.shape.d_model,
        "vocab_size": entry.shape.vocab_size,
        "context": entry.shape.max_positions,
        "languages": list(entry.languages),
        "licence": {
            "id": entry.licence.id,
            "commercial": entry.licence.commercial,
            "restriction": entry.licence.restriction,
            "url": entry.licence.url,
        },
        "good_at": [
            {
                "task": claim.task,
                "claim": claim.claim,
                "source": claim.source,
                "confirmed": not claim.unconfirmed,
            }
            for claim in entry.good_at
        ],
        "weights_bytes": entry.weights_bytes(),
        "kv_cache": {"context": used, "bytes": entry.kv_bytes(context)},
        "memory_method": "computed from the shape",
        "unconfirmed": list(entry.unconfirmed),
        "note": entry.note,
    }


def entries_text(
    entries: Iterable[Entry], context: int = CONTEXT, budget: int | None = None
) -> str:
    """Returns entries as tables, one a series; with `budget` also what fits into those bytes."""
    series = itertools.groupby(entries, key=lambda entry: entry.name)
    parts = ["\n".join(_series(list(group), context, budget)) for _, group in series]
    return "\n\n".join([*parts, _legend(context)])


def _series(entries: list[Entry], context: int, budget: int | None) -> Iterator[str]:
    first = entries[0]
    doubt = "?" if "languages" in first.unconfirmed else ""
    yield f"{first.name}: {first.family}, {', '.join(first.languages)}{doubt}"
    for licence in dict.fromkeys(entry.licence for entry in entries):
        under = [entry for entry in entries if entry.licence == licence]
        tags = "" if len(under) == len(entries) else f"{', '.join(e.tag for e in under)}: "
        doubt = "?" if "licence" in under[0].unconfirmed else ""
        words = f" {licence.restriction}" if licence.restriction else ""
        yield f"  licence  {tags}{licence.id}{doubt}, {_COMMERCIAL[licence.commercial]}.{words}"
    for claim in first.good_at:
        doubt = ", unconfirmed" if claim.unconfirmed else ""
        yield f"  good at  {claim.task}: {claim.claim} [{claim.source}{doubt}]"
    if first.note:
        yield f"  note     {first.note}"
    heads = [*PRECISIONS, "keys+values", "context", *([] if budget is None else ["fits as"])]
    yield f"  {'GB':<22}{'parameters':>11}" + "".join(f"{head:>{_width(head)}}" for head in heads)
    for entry in entries:
        yield _row(entry, context, budget)


def _row(entry: Entry, context: int, budget: int | None) -> str:
    sizes = [_gb(size) for size in entry.weights_bytes().values()]
    positions = f"{entry.shape.max_positions:,}"
    cells = [*sizes, _gb(entry.kv_bytes(context)), positions]
    if budget is not None:
        cells.append(entry.fits(budget, context) or "-")
    heads = [*PRECISIONS, "keys+values", "context", "fits as"]
    text = "".join(f"{cell:>{_width(head)}}" for head, cell in zip(heads, cells, strict=False))
    return f"  {entry.reference:<22}{entry.size.parameters / 1e6:>9,.0f} M{text}"


def _width(head: str) -> int:
    return max(9, len(head) + 2)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"


def _legend(context: int) -> str:
    return (
        "Gigabytes (10^9 bytes), computed from the shape: weights at each precision; keys and "
        f"values of one conversation of {context:,} tokens, or of the model's most if that is "
        "fewer, come on top. ? was not seen in the model's own files."
    )
