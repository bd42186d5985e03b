"""One answer of a model: text events onto a terminal, with their timings.

For: what a single answer and a conversation have in common, timings and energy included.
Not for: generating (`miudo.engine.generate`).
Read next: `miudo.cli.running`, `miudo.cli.conversing`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.options import emit, printable

if TYPE_CHECKING:
    from miudo.engine.batches import Guide
    from miudo.engine.generate import GenerateSettings
    from miudo.engine.speculate import Speculation
    from miudo.evaluate.loading import LoadedModel
    from miudo.meter import Meter

__all__ = ["answer"]


def answer(
    loaded: LoadedModel,
    ids: Sequence[int],
    settings: GenerateSettings,
    *,
    speculation: Speculation | None,
    as_json: bool,
    guide: Guide | None = None,
    watts: float | None = None,
) -> str:
    """Prints what the model makes of `ids`, piece by piece or as one JSON object.

    `guide` as in `miudo.engine.generate`, `watts` as in `miudo.meter.Meter`, None for its default.
    """
    from miudo.engine.generate import generate
    from miudo.meter import DEFAULT_WATTS, Meter

    on_terminal = sys.stdout.isatty()
    events = generate(
        loaded.engine, loaded.tokenizer, ids, settings, speculation=speculation, guide=guide
    )
    drawn = DEFAULT_WATTS if watts is None else watts
    with Meter(watts=drawn) as beginning:
        last = next(events)  # there is always one
    parts: list[str] = []
    with Meter(watts=drawn) as rest:
        for event in chain((last,), events):
            parts.append(event.text)
            last = event
            if not as_json:
                click.echo(printable(event.text) if on_terminal else event.text, nl=False)
                sys.stdout.flush()
    text = "".join(parts)
    timings, energy = _timings(last.usage, beginning, rest), _energy(last.usage, beginning, rest)
    if as_json:
        value = {"schema": 1, "model": str(loaded.path), "text": text}
        ending = {"finish_reason": last.finish_reason, "usage": dict(last.usage)}
        emit({**value, **ending, "timings": timings, "energy": energy}, "", as_json=True)
        return text
    click.echo()
    if sys.stderr.isatty():
        click.secho(_timings_line(last.usage, timings, energy), dim=True, err=True)
    return text


def _timings(usage: Any, beginning: Meter, rest: Meter) -> dict[str, float]:
    made = usage.get("completion_tokens", 0)
    return {
        "first_token_s": beginning.elapsed_s,
        "prompt_tokens_per_s": usage.get("prompt_tokens", 0) / max(beginning.elapsed_s, 1e-9),
        "new_tokens_per_s": max(0, made - 1) / max(rest.elapsed_s, 1e-9),
    }


def _energy(usage: Any, beginning: Meter, rest: Meter) -> dict[str, Any]:
    """Joules to the first piece of text, and from there on; for each token of the latter."""
    from miudo.meter import energy_basis

    made = usage.get("completion_tokens", 0) - 1
    joules = rest.energy.energy_j
    return {
        "first_token_j": beginning.energy.energy_j,
        "rest_j": joules,
        "new_token_j": joules / made if made > 0 else None,
        "method": energy_basis(rest.energy.method),
        "estimate": rest.energy.estimate,
    }


def _timings_line(usage: Any, timings: dict[str, float], energy: dict[str, Any]) -> str:
    line = (
        f"{usage['prompt_tokens']} prompt tokens, first token after "
        f"{timings['first_token_s'] * 1e3:.0f} ms; {usage['completion_tokens']} new tokens at "
        f"{timings['new_tokens_per_s']:,.0f}/s"
    )
    if energy["new_token_j"] is None:
        return line
    joules = f"{energy['new_token_j'] * 1e3:,.2f} mJ"
    return f"{line}, {f'about {joules}' if energy['estimate'] else joules} each"
