"""`miudo run`: one answer, a pipe, or a conversation.

For: telling model and prompt apart, and where the prompt comes from.
Not for: generating (`miudo.engine.generate`) or printing (`miudo.cli.answering`).
Read next: `miudo.cli.answering`; `miudo.cli.conversing` for the loop on a terminal.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.answering import answer
from miudo.cli.forms import guided, read_schema
from miudo.cli.options import BLOCK_TYPES, verb, watts_option
from miudo.cli.templates import read_template, template_option
from miudo.errors import RequestError, UsageError
from miudo.hub.resolve import model_path

if TYPE_CHECKING:
    from miudo.engine.generate import GenerateSettings
    from miudo.engine.speculate import Speculation
    from miudo.evaluate.loading import LoadedModel

__all__ = ["choose", "run"]


@verb("run")
@click.argument("model_and_prompt", nargs=-1, metavar="[MODEL] [PROMPT]")
@click.option(
    "--adapter", type=click.Path(path_type=Path), help="Lay this LoRA adapter over the model."
)
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
@template_option
@click.option(
    "--schema",
    metavar="FILE|json",
    help="Answer in JSON of the JSON Schema in FILE; json: in any JSON.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads of the engine.")
@click.option("--activations", type=click.Choice(["int8", "float"]), default="int8")
@click.option(
    "--dtype",
    type=click.Choice(["F32", "F16", "BF16", *BLOCK_TYPES], case_sensitive=False),
    help="Hold matrices as this type; default: as they are.",
)
@watts_option
@click.option(
    "--context",
    type=click.IntRange(1),
    help="Let texts of so many tokens fit, in a longrope model more than its original ones.",
)
@click.option(
    "--speculate/--no-speculate",
    default=True,
    show_default=True,
    help="Guess tokens where that saves time; they stay the same.",
)
@click.option(
    "--draft-model",
    metavar="MODEL",
    help="A smaller model of the same tokenizer that guesses too.",
)
def run(
    model_and_prompt: tuple[str, ...],
    *,
    adapter: Path | None,
    prompt: str | None,
    raw: bool,
    dtype: str | None,
    chat_template: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Talk to MODEL, or continue PROMPT with it.

    Without MODEL the model inside the package runs. A single argument that holds white space
    is a prompt. Without a prompt: what is piped in, or a conversation on a terminal.
    """
    from miudo.evaluate.loading import load_model
    from miudo.tensors import DType

    model, given = choose(model_and_prompt, prompt)
    watts, schema = flags.pop("watts"), flags.pop("schema")
    engine = {flag: flags.pop(flag) for flag in ("threads", "activations", "context")}
    speculate, draft = flags.pop("speculate"), flags.pop("draft_model")
    settings = _settings(**flags)
    if raw and chat_template is not None:
        raise UsageError("--raw takes no --chat-template", remedy="Leave one of them out")
    if draft is not None and not speculate:
        raise UsageError("--no-speculate takes no --draft-model", remedy="Leave one of them out")
    template = None if chat_template is None else read_template(chat_template)
    language = None if schema is None else read_schema(schema)
    if language is not None and settings.stop:
        raise UsageError("--schema takes no --stop", remedy="It could cut the JSON short")
    path = model_path(model)
    held = None if dtype is None else DType(dtype)
    loaded = load_model(path, adapter=adapter, dtype=held, **engine)
    if model is not None:
        from miudo.cli.licensing import state_licence_of_model

        state_licence_of_model(model, path, loaded.model.record)
    if template is not None:
        loaded = dataclasses.replace(
            loaded, model=dataclasses.replace(loaded.model, chat_template=template)
        )
    settings = dataclasses.replace(
        settings, eos_ids=loaded.model.config.eos_ids, adapter=loaded.adapter
    )
    speculation = _speculation(loaded, draft, engine) if speculate else None
    if given is None and sys.stdin.isatty():
        from miudo.cli.conversing import converse

        if as_json or language is not None:
            flag = "--json" if as_json else "--schema"
            raise UsageError(f"{flag} needs a prompt", remedy="Give --prompt or pipe one in")
        converse(loaded, settings, speculation=speculation, raw=raw, watts=watts)
        return
    text = _piped(raw=raw) if given in (None, "-") else str(given)
    if not text.strip() and not raw:
        raise UsageError("the prompt is empty", remedy="Give a prompt, or --raw to start from none")
    from miudo.protocol import Message
    from miudo.text.prompt import prompt_ids

    template = None if raw else loaded.model.chat_template
    messages = [Message("user", text)]
    ids = prompt_ids(loaded.tokenizer, messages, loaded.model.config, template=template)
    guide = None if language is None else guided(loaded, language, settings.sampling)
    answer(
        loaded, ids, settings, speculation=speculation, guide=guide, as_json=as_json, watts=watts
    )


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


def _settings(*, max_tokens: int, stop: tuple[str, ...], **sampling: Any) -> GenerateSettings:
    from miudo.engine.generate import GenerateSettings
    from miudo.protocol import SamplingSettings

    try:
        return GenerateSettings(max_tokens, SamplingSettings(**sampling), stop)
    except RequestError as error:  # here the values were typed as flags
        raise UsageError(error.what, where=error.where, remedy=error.remedy) from error


def _speculation(loaded: LoadedModel, draft: str | None, engine: dict[str, Any]) -> Speculation:
    from miudo.engine.speculate import Speculation
    from miudo.evaluate.loading import load_model

    if draft is None:
        return Speculation()
    drafting = load_model(model_path(draft), **engine | {"context": None})
    if drafting.tokenizer.fingerprint != loaded.tokenizer.fingerprint:
        raise RequestError(
            f"{drafting.path.name} has another tokenizer than {loaded.path.name}",
            where="--draft-model",
            remedy="Draft with a model of the same tokenizer",
        )
    return Speculation(drafting.engine)


def _piped(*, raw: bool) -> str:
    text = sys.stdin.read()
    return text if raw else text.removesuffix("\n")  # `echo` and editors end with one


def _is_prompt(text: str) -> bool:
    return any(c.isspace() for c in text) and not os.path.exists(text)
