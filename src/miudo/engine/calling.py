"""The language of answers that may, or must, call functions, with arguments of their schemas.

For: `tools` of a request.
Not for: the forms of calls (`miudo.text.tools`), or reading them (`miudo.text.calls`).
Read next: `miudo.engine.grammars`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from miudo.engine.grammars import Language, json_rule
from miudo.engine.schemas import closed
from miudo.text.tools import CallForm, Tool

__all__ = ["calling"]


def calling(
    form: CallForm,
    tools: Sequence[tuple[Tool, str]],
    special_ids: Mapping[str, int],
    *,
    must: bool,
    several: bool,
    where: str = "tools",
) -> Language:
    """Returns answers that are calls, or unless `must` text, or text and calls behind it.

    Arguments are those that a schema names, unless it says that there may be others. Each tool
    comes with what errors call its parameters. `special_ids` are tokens that have no
    text of their own; a marker among them is that token. Raises RequestError for a schema that
    cannot be enforced.
    """
    rules = [
        f"call_{i}: {_written(form.before + tool.name + form.middle, special_ids)} "
        f"{json_rule(closed(dict(tool.parameters)), path)} {_written(form.after, special_ids)}"
        for i, (tool, path) in enumerate(tools)
    ]
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    more = f"({_written(form.between, special_ids)} call)*" if several and form.between else ""
    calls = f"call {more} {_written(form.close, special_ids)}"
    if must:
        rules.append(f"start: {_written(form.open, special_ids)} {calls}")
    elif not form.open:
        rules += [f"start: OTHER | {calls}", r"OTHER: /([^{\s](.|\n)*)?/"]
    else:
        rules += ["start: TEXT | opened", "TEXT: /(.|\\n)*/", *_opened(form, calls, special_ids)]
    return Language("\n".join(rules) + "\n", where)


def _opened(form: CallForm, calls: str, special_ids: Mapping[str, int]) -> list[str]:
    """Text up to the first marker, and what must come from there on."""
    marker = form.open.strip()
    special = next((token for token in special_ids if form.open.startswith(token)), None)
    if special is not None:
        rest = _written(form.open[len(special) :], special_ids)
        return [f"opened: TEXT <[{special_ids[special]}]> {rest} {calls}"]
    rest = _written(form.open[len(marker) :], special_ids)
    return [f"opened: opener {rest} {calls}", f"opener[lazy]: TEXT {json.dumps(marker)}"]


def _written(text: str, special_ids: Mapping[str, int]) -> str:
    """Returns literals and tokens that stand for `text` in a rule."""
    if not special_ids:
        return json.dumps(text) if text else ""
    pattern = "|".join(map(re.escape, sorted(special_ids, key=len, reverse=True)))
    parts = re.split(f"({pattern})", text)
    return " ".join(
        f"<[{special_ids[part]}]>" if part in special_ids else json.dumps(part)
        for part in parts
        if part
    )
