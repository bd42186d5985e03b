"""One answer of a model: text events onto a terminal, with their timings.

For: what a single answer and a conversation have in common, timings and energy included.
Not for: generating (`miudo.engine.generate`).
Read next: `miudo.cli.running`, `miudo.cli.conversing`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.options import aside, emit, printable
from miudo.cli.talk import Talk

if TYPE_CHECKING:
    from miudo.meter import Meter
    from miudo.protocol import TextEvent

__all__ = ["AnswerStopped", "answer"]


class AnswerStopped(KeyboardInterrupt):
    """Ctrl-C in the midst of an answer; `said` is what was printed by then."""

    def __init__(self, said: str) -> None:
        super().__init__()
        self.said = said


def answer(talk: Talk, ids: Sequence[int], *, as_json: bool = False) -> str:
    """Prints what the model makes of `ids`, piece by piece or as one JSON object; returns it.

    Raises AnswerStopped on Ctrl-C, and what `miudo.engine.generate.generate` raises.
    """
    from miudo.engine.generate import generate
    from miudo.meter import DEFAULT_WATTS, Meter

    loaded = talk.loaded
    settings = talk.settings
    events = generate(
        loaded.engine,
        loaded.tokenizer,
        ids,
        settings,
        speculation=talk.speculation,
        guide=None if talk.form is None else talk.form.begin(settings),
    )
    drawn = DEFAULT_WATTS if talk.watts is None else talk.watts
    parts: list[str] = []
    try:
        with Meter(watts=drawn) as beginning:
            last = next(events)  # there is always one
        with Meter(watts=drawn) as rest:
            for event in chain((last,), events):
                last = event
                _say(event, parts, silent=as_json)
    except KeyboardInterrupt:
        raise AnswerStopped("".join(parts)) from None
    text = "".join(parts)
    timings, energy = _timings(last.usage, beginning, rest), _energy(last.usage, beginning, rest)
    if as_json:
        value = {"schema": 1, "model": str(loaded.path), "text": text}
        ending = {"finish_reason": last.finish_reason, "usage": dict(last.usage)}
        how = {"chat_template": talk.template_from, "timings": timings, "energy": energy}
        emit({**value, **ending, **how}, "", as_json=True)
        return text
    click.echo()
    if talk.form is not None and last.finish_reason == "length":
        click.echo("warning: cut off, so not of --schema's form: raise --max-tokens", err=True)
    if sys.stderr.isatty() if talk.timings is None else talk.timings:
        aside(_timings_line(last, timings, energy))
    return text


def _say(event: TextEvent, parts: list[str], *, silent: bool) -> None:
    parts.append(event.text)
    if not silent:
        # A file gets every character, a terminal none that would command it.
        click.echo(printable(event.text) if sys.stdout.isatty() else event.text, nl=False)
        sys.stdout.flush()


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


def _timings_line(last: TextEvent, timings: dict[str, float], energy: dict[str, Any]) -> str:
    return ", ".join(_timings_parts(last, timings, energy))


def _timings_parts(
    last: TextEvent, timings: dict[str, float], energy: dict[str, Any]
) -> Iterator[str]:
    usage = last.usage
    yield f"{usage['prompt_tokens']} prompt tokens"
    yield f"first token after {timings['first_token_s'] * 1e3:.0f} ms"
    yield f"{usage['completion_tokens']} new tokens at {timings['new_tokens_per_s']:,.0f}/s"
    if energy["new_token_j"] is not None:
        joules = f"{energy['new_token_j'] * 1e3:,.2f} mJ each"
        yield f"about {joules}" if energy["estimate"] else joules
    if last.finish_reason == "length":
        yield "cut off: --max-tokens, or no more room"
