"""`miudo run`: one answer, a pipe, or a conversation.

For: turning what a user typed into prompt ids, and events into a terminal's text.
Not for: generating (`miudo.engine.generate`).
Read next: `miudo.cli.conversing` for the loop on a terminal.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.options import emit, printable, verb
from miudo.errors import UsageError

if TYPE_CHECKING:
    from miudo.engine.generate import GenerateSettings
    from miudo.evaluate.loading import LoadedModel
    from miudo.protocol import Message, TextEvent

__all__ = ["answer", "choose", "prompt_ids", "run"]


@verb("run")
@click.argument("model_and_prompt", nargs=-1, metavar="[MODEL] [PROMPT]")
@click.option("--prompt", help="The prompt, whatever it looks like; - reads standard input.")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--temperature", type=float, default=0.7, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=0.95, show_default=True)
@click.option("--top-k", type=int, default=0, show_default=True, help="0 is all.")
@click.option("--min-p", type=float, default=0.0, show_default=True)
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--stop", multiple=True, help="Stop before this text; may be repeated.")
@click.option("--raw", is_flag=True, help="Continue the text; no chat template.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the engine.")
@click.option("--activations", type=click.Choice(["int8", "float"]), default="int8")
def run(
    model_and_prompt: tuple[str, ...],
    *,
    prompt: str | None,
    raw: bool,
    threads: int | None,
    activations: Any,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Talk to MODEL, or continue PROMPT with it.

    Without MODEL the model inside the package runs. A single argument that holds white space
    is a prompt. Without a prompt: what is piped in, or a conversation on a terminal.
    """
    from miudo.evaluate.loading import load_model

    model, given = choose(model_and_prompt, prompt)
    settings = _settings(**sampling)
    loaded = load_model(_path(model), threads=threads, activations=activations)
    settings = dataclasses.replace(settings, eos_ids=loaded.model.config.eos_ids)
    if given is None and sys.stdin.isatty():
        from miudo.cli.conversing import converse

        if as_json:
            raise UsageError("--json needs a prompt", remedy="Give --prompt or pipe one in")
        converse(loaded, settings, raw=raw)
        return
    text = _piped(raw=raw) if given in (None, "-") else str(given)
    if not text.strip() and not raw:
        raise UsageError("the prompt is empty", remedy="Give a prompt, or --raw to start from none")
    from miudo.protocol import Message

    ids = prompt_ids(loaded, [Message("user", text)], raw=raw)
    answer(loaded, ids, settings, as_json=as_json)


def choose(arguments: Sequence[str], prompt: str | None) -> tuple[str | None, str | None]:
    """Returns (model, prompt) of the command line; None is the embedded model, or no prompt.

    Raises UsageError for more than a model and a prompt.
    """
    wanted = 1 if prompt is not None else 2
    if len(arguments) > wanted:
        raise UsageError(
            f"{len(arguments)} arguments are too many", remedy="Put the prompt in quotes"
        )
    if len(arguments) == 2:
        return arguments[0], arguments[1]
    if not arguments:
        return None, prompt
    (only,) = arguments
    if prompt is None and (only == "-" or _is_prompt(only)):
        return None, only
    return only, prompt


def prompt_ids(loaded: LoadedModel, messages: Sequence[Message], *, raw: bool) -> list[int]:
    """Returns the ids to start from: the chat template's, or with `raw` the plain text's.

    A model without a template continues the last message as it is.
    """
    from miudo.evaluate.perplexity import start_id

    template = loaded.model.chat_template
    if raw or template is None:
        start = start_id(loaded.model.config)
        first = [] if start is None else [start]
        return first + loaded.tokenizer.encode(messages[-1].content)
    from miudo.text.chat import ChatTemplate, encode_chat

    chat = ChatTemplate(template, variables=_special_texts(loaded))
    return encode_chat(loaded.tokenizer, chat, messages)


def answer(
    loaded: LoadedModel, ids: Sequence[int], settings: GenerateSettings, *, as_json: bool
) -> str:
    """Prints what the model makes of `ids`, piece by piece or as one JSON object."""
    from miudo.engine.generate import generate

    on_terminal = sys.stdout.isatty()
    start = time.perf_counter()
    first = start
    parts: list[str] = []
    last: TextEvent | None = None
    for event in generate(loaded.engine, loaded.tokenizer, ids, settings):
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


def _settings(*, max_tokens: int, stop: tuple[str, ...], **sampling: Any) -> GenerateSettings:
    from miudo.engine.generate import GenerateSettings
    from miudo.protocol import SamplingSettings

    return GenerateSettings(max_tokens, SamplingSettings(**sampling), stop)


def _special_texts(loaded: LoadedModel) -> dict[str, str]:
    """Returns the tokens that templates of other makers name."""
    config = loaded.model.config
    ids = {"bos_token": config.bos_id, "eos_token": next(iter(config.eos_ids), None)}
    texts = {number: text for text, number in loaded.tokenizer.special_ids.items()}
    return {name: texts[number] for name, number in ids.items() if number in texts}


def _piped(*, raw: bool) -> str:
    text = sys.stdin.read()
    return text if raw else text.removesuffix("\n")  # `echo` and editors end with one


def _path(model: str | None) -> Path:
    from miudo.hub.resolve import embedded_path, resolve

    if model is None:
        return embedded_path()
    from miudo.names import parse_reference

    return resolve(parse_reference(model))


def _is_prompt(text: str) -> bool:
    return any(c.isspace() for c in text) and not Path(text[:4000]).exists()


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
