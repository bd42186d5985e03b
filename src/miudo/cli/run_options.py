"""The options that `run`, `chat` and `complete` share, and the settings that they become.

For: one list of flags for the three.
Not for: what the verbs do (`miudo.cli.running`).
Read next: `miudo.cli.options`, for what every verb takes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from miudo.cli.options import BLOCK_TYPES, complete_model, watts_option
from miudo.cli.templates import template_option
from miudo.errors import RequestError, UsageError

if TYPE_CHECKING:
    from miudo.engine.generate import GenerateSettings

__all__ = ["generate_settings", "talk_options"]

_F = TypeVar("_F", bound=Callable[..., Any])

_COMMON = (
    click.argument(
        "model_and_prompt", nargs=-1, metavar="[MODEL] [PROMPT]", shell_complete=complete_model
    ),
    click.option("--prompt", help="The prompt, whatever it looks like; - reads standard input."),
    click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True),
    click.option("--temperature", type=float, default=0.7, show_default=True, help="0 is greedy."),
    click.option("--top-p", type=float, default=0.95, show_default=True),
    click.option("--top-k", type=int, default=0, show_default=True, help="0 is all."),
    click.option("--min-p", type=float, default=0.0, show_default=True),
    click.option("--repetition-penalty", type=float, default=1.0, show_default=True),
    click.option("--seed", type=int, default=0, show_default=True),
    click.option("--stop", multiple=True, help="Stop before this text; may be repeated."),
    click.option(
        "--schema",
        metavar="FILE|json",
        help="Answer in JSON of the JSON Schema in FILE; json: in any JSON.",
    ),
    click.option(
        "--timings/--no-timings",
        "--verbose",
        default=None,
        help="Tell after an answer how long it took and what it cost; default: on a terminal.",
    ),
    click.option(
        "--no-history",
        is_flag=True,
        envvar="MIUDO_NO_HISTORY",
        help="Keep nothing of what is typed in a conversation.",
    ),
    click.option(
        "--adapter", type=click.Path(path_type=Path), help="Lay this LoRA adapter over the model."
    ),
    click.option("--threads", type=click.IntRange(1), help="Threads of the engine."),
    click.option("--activations", type=click.Choice(["int8", "float"]), default="int8"),
    click.option(
        "--dtype",
        type=click.Choice(["F32", "F16", "BF16", *BLOCK_TYPES], case_sensitive=False),
        help="Hold matrices as this type; default: as they are.",
    ),
    click.option(
        "--context",
        type=click.IntRange(1),
        help="Let texts of so many tokens fit, in a longrope model more than its original ones.",
    ),
    click.option(
        "--speculate/--no-speculate",
        default=True,
        show_default=True,
        help="Guess tokens where that saves time; they stay the same.",
    ),
    click.option(
        "--draft-model",
        metavar="MODEL",
        help="A smaller model of the same tokenizer that guesses too.",
    ),
    watts_option,
)
_CHAT = (
    click.option("--system", help="What the model is told before the conversation."),
    template_option,
)


def talk_options(*, chat: bool) -> Callable[[_F], _F]:
    """Returns a decorator that gives a verb its options, those of chats too or not."""

    def decorate(function: _F) -> _F:
        for option in reversed((*_COMMON[:2], *_CHAT, *_COMMON[2:]) if chat else _COMMON):
            function = option(function)
        return function

    return decorate


def generate_settings(
    *, max_tokens: int, stop: tuple[str, ...], **sampling: Any
) -> GenerateSettings:
    """Returns the settings of flags. Raises UsageError for a value out of its range."""
    from miudo.engine.generate import GenerateSettings
    from miudo.protocol import SamplingSettings

    try:
        return GenerateSettings(max_tokens, SamplingSettings(**sampling), stop)
    except RequestError as error:  # here the values were typed as flags
        raise UsageError(error.what, where=error.where, remedy=error.remedy) from error
