"""`miudo run`, `chat` and `complete`: one answer, a pipe, or a conversation.

For: making a model ready to talk, and choosing between chat and continued text. `run` lets the
chat template decide, `chat` wants one, `complete` wants none; all else is the same function.
Not for: generating (`miudo.engine.generate`) or printing (`miudo.cli.answering`).
Read next: `miudo.cli.answering`; `miudo.cli.conversing` for the loop on a terminal.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from miudo.cli.answering import answer
from miudo.cli.forms import Form, read_schema
from miudo.cli.options import aside, printable, verb
from miudo.cli.prompting import choose, prompt_text
from miudo.cli.run_options import generate_settings, talk_options
from miudo.cli.talk import NO_TEMPLATE, Talk
from miudo.cli.templates import read_template, template_origin
from miudo.errors import RequestError, UsageError
from miudo.hub.resolve import model_path

if TYPE_CHECKING:
    from miudo.engine.speculate import Speculation
    from miudo.evaluate.loading import LoadedModel

__all__ = ["chat", "complete", "run"]

_Manner = Literal["run", "chat", "complete"]


@verb("run")
@talk_options(chat=True)
def run(**given: Any) -> None:
    """Talk to MODEL, or have it answer PROMPT.

    Without MODEL the model inside the package runs. A single argument with white space, ! or ?
    is a prompt. What is piped in comes before PROMPT, or is it. Without either: a conversation,
    in which /help tells what there is to do.

    A model with a chat template answers; one without continues the text. `miudo chat` insists on
    the first, `miudo complete` on the second.
    """
    _talk("run", **given)


@verb("chat")
@talk_options(chat=True)
def chat(**given: Any) -> None:
    """Talk to MODEL through its chat template; a model without one is refused.

    In all else as `miudo run`.
    """
    _talk("chat", **given)


@verb("complete")
@talk_options(chat=False)
def complete(**given: Any) -> None:
    """Continue PROMPT with MODEL as it stands, without a chat template.

    In all else as `miudo run`, except that a pipe keeps its last line's end.
    """
    _talk("complete", system=None, chat_template=None, **given)


def _talk(
    manner: _Manner,
    *,
    model_and_prompt: tuple[str, ...],
    prompt: str | None,
    system: str | None,
    as_json: bool,
    no_history: bool,
    **flags: Any,
) -> None:
    name, given = choose(model_and_prompt, prompt)
    text = prompt_text(given, exact=manner == "complete")
    if text is None and as_json:
        raise UsageError("--json needs a prompt", remedy="Give --prompt or pipe one in")
    if text is not None and not text.strip() and manner != "complete":
        raise UsageError(
            "the prompt is empty", remedy="Give a prompt (one word by --prompt), or pipe one in"
        )
    talk = _ready(manner, name, **flags)
    if system is not None and talk.template is None:
        raise UsageError(
            "--system needs a chat template, and the model has none",
            where=talk.name,
            remedy="Give --chat-template, such as chatml, or leave --system out",
        )
    if text is None:
        _converse(talk, name, system=system, no_history=no_history)
        return
    from miudo.protocol import Message

    messages = [] if system is None else [Message("system", system)]
    if talk.template is None and manner == "run" and sys.stderr.isatty():
        aside(
            f"{talk.name} has no chat template: the text is continued (--chat-template gives one)"
        )
    answer(talk, talk.ids([*messages, Message("user", text)]), as_json=as_json)


def _ready(manner: _Manner, name: str | None, **flags: Any) -> Talk:
    """Loads the model `name` as the flags want it."""
    from miudo.evaluate.loading import load_model
    from miudo.tensors import DType

    watts, timings, dtype = (flags.pop(flag) for flag in ("watts", "timings", "dtype"))
    adapter, template = flags.pop("adapter"), flags.pop("chat_template")
    schema = flags.pop("schema")
    engine = {flag: flags.pop(flag) for flag in ("threads", "activations", "context")}
    speculate, draft = flags.pop("speculate"), flags.pop("draft_model")
    settings = generate_settings(**flags)
    if draft is not None and not speculate:
        raise UsageError("--no-speculate takes no --draft-model", remedy="Leave one of them out")
    given = None if template is None else read_template(template)
    language = None if schema is None else read_schema(schema)
    path = model_path(name)
    held = None if dtype is None else DType(dtype)
    loaded = load_model(path, adapter=adapter, dtype=held, **engine)
    if name is not None:
        from miudo.cli.licensing import state_licence_of_model

        state_licence_of_model(name, path, loaded.model.record)
    chosen, origin = (
        (None, NO_TEMPLATE)
        if manner == "complete"
        else _template(loaded, given, template, adapter=adapter)
    )
    if chosen is None and manner == "chat":
        raise UsageError(
            "has no chat template, so it cannot be talked to",
            where=name or path.stem,
            remedy="Give --chat-template, such as chatml, or continue texts: miudo complete",
        )
    return Talk(
        name or path.stem,
        loaded,
        dataclasses.replace(settings, eos_ids=loaded.model.config.eos_ids, adapter=loaded.adapter),
        chosen,
        origin,
        _speculation(loaded, draft, engine) if speculate else None,
        watts,
        timings,
        None if language is None else Form(loaded, language),
    )


def _template(
    loaded: LoadedModel, given: str | None, choice: str | None, *, adapter: Path | None
) -> tuple[str | None, str]:
    """Returns the chat template and where it came from."""
    if given is not None and choice is not None:
        return given, template_origin(choice)
    if loaded.model.chat_template is None:
        return None, NO_TEMPLATE
    from miudo.formats.adapter import adapter_template

    own = adapter is not None and adapter_template(adapter) is not None
    return loaded.model.chat_template, "the adapter's own" if own else "the model's own"


def _converse(talk: Talk, name: str | None, *, system: str | None, no_history: bool) -> None:
    from miudo.cli.conversing import converse
    from miudo.cli.first_screen import facts, facts_text
    from miudo.cli.licensing import catalogue_licence
    from miudo.cli.typed import history_file

    stated = None if name is None else catalogue_licence(name)
    aside(printable(facts_text(facts(talk, None if stated is None else stated.id))))
    aside('/help tells the commands, """ begins a long text, Ctrl-C stops an answer, Ctrl-D leaves')
    converse(talk, system=system, history=None if no_history else history_file())


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
