"""One answer of a model: text events onto a terminal, with their timings.

For: what a single answer and a conversation have in common.
Not for: generating (`miudo.engine.generate`).
Read next: `miudo.cli.running`, `miudo.cli.conversing`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.options import emit, printable

if TYPE_CHECKING:
    from miudo.engine.generate import GenerateSettings
    from miudo.engine.speculate import Speculation
    from miudo.evaluate.loading import LoadedModel
    from miudo.protocol import TextEvent

__all__ = ["answer"]


def answer(
    loaded: LoadedModel,
    ids: Sequence[int],
    settings: GenerateSettings,
    *,
    speculation: Speculation | None,
    as_json: bool,
) -> str:
    """Prints what the model makes of `ids`, piece by piece or as one JSON object."""
    from miudo.engine.generate import generate

    on_terminal = sys.stdout.isatty()
    start = time.perf_counter()
    first = start
    parts: list[str] = []
    last: TextEvent | None = None
    events = generate(loaded.engine, loaded.tokenizer, ids, settings, speculation=speculation)
    for event in events:
        if not parts:
            first = time.perf_counter()
        parts.append(event.text)
        last = event
        if not as_json:
            click.echo(printable(event.text) if on_terminal else event.text, nl=False)
            sys.stdout.flush()
    text = "".join(parts)
    assert last is not None  # noqa: S101 - generate always ends with an event
    timings = _timings(last.usage, first - start, time.perf_counter() - first)
    if as_json:
        value = {"schema": 1, "model": str(loaded.path), "text": text}
        ending = {"finish_reason": last.finish_reason, "usage": dict(last.usage)}
        emit({**value, **ending, "timings": timings}, "", as_json=True)
        return text
    click.echo()
    if sys.stderr.isatty():
        click.secho(_timings_line(last.usage, timings), dim=True, err=True)
    return text


def _timings(usage: Any, first_s: float, rest_s: float) -> dict[str, float]:
    made = usage.get("completion_tokens", 0)
    return {
        "first_token_s": first_s,
        "prompt_tokens_per_s": usage.get("prompt_tokens", 0) / max(first_s, 1e-9),
        "new_tokens_per_s": max(0, made - 1) / max(rest_s, 1e-9),
    }


def _timings_line(usage: Any, timings: dict[str, float]) -> str:
    return (
        f"{usage['prompt_tokens']} prompt tokens, first token after "
        f"{timings['first_token_s'] * 1e3:.0f} ms; {usage['completion_tokens']} new tokens at "
        f"{timings['new_tokens_per_s']:,.0f}/s"
    )
