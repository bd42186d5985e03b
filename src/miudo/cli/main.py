"""`miudo`: the table of verbs, and what an error becomes on a terminal.

For: finding a verb's module without importing the others; exit codes; one-line errors.
Not for: what a verb does (its own file beside this one).
Read next: `miudo.cli.options`, then any verb, say `miudo.cli.evaluating`.

Exit codes: 0 ok, 1 failure, 2 usage, 3 a check failed, 4 not found or offline, 5 too little
memory or disk, 130 interrupted. Standard output is the result, standard error the rest.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextvars import copy_context
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

from miudo import __version__
from miudo.errors import MissingError, MiudoError, ResourceError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["ALIASES", "SECTIONS", "VERBS", "LazyGroup", "cli", "main"]

VERBS: dict[str, tuple[str, str]] = {
    "run": ("miudo.cli.running:run", "Talk to a model, or continue a text"),
    "chat": ("miudo.cli.running:chat", "Talk to a model that has a chat template"),
    "complete": ("miudo.cli.running:complete", "Continue a text, without a chat template"),
    "suggest": ("miudo.cli.suggesting:suggest", "The next words of a text, as a keyboard has them"),
    "tokenize": ("miudo.cli.tokenizing:tokenize", "A text as a model's tokens, or ids as text"),
    "embed": ("miudo.cli.embedding:embed", "Texts as vectors, to compare and search them"),
    "serve": ("miudo.cli.serving:serve", "A page, and the APIs of OpenAI, Anthropic, Ollama"),
    "route": ("miudo.cli.routing:route", "Small model or large one, by rules and examples"),
    "ps": ("miudo.cli.processes:ps", "The servers that run here, and their models"),
    "catalog": ("miudo.cli.browsing:catalog", "Models to choose from: memory, licence, uses"),
    "pull": ("miudo.cli.pulling:pull", "Fetch a model from the Hugging Face hub"),
    "list": ("miudo.cli.keeping:list_", "The models on this machine (also: ls)"),
    "show": ("miudo.cli.showing:show", "What a model is, and how it came to be"),
    "import": ("miudo.cli.keeping:import_", "Copy a model in, under a name"),
    "cp": ("miudo.cli.keeping:copy", "Give a model on this machine another name"),
    "rm": ("miudo.cli.keeping:remove", "Delete a model that was pulled or imported"),
    "export": ("miudo.cli.exporting:export", "Write a model as one GGUF file or as a folder"),
    "shrink": ("miudo.cli.planning:shrink", "A model within a budget, and the proof of it"),
    "finetune": ("miudo.cli.tuning:finetune", "Teach a model from chats or text of yours"),
    "distill": ("miudo.cli.shrinking:distill", "Train a small model to imitate a big one"),
    "prune": ("miudo.cli.shrinking:prune", "Take layers or feed-forward width out of a model"),
    "quantize": ("miudo.cli.quantizing:quantize", "Store a model's weights in fewer bits"),
    "merge": ("miudo.cli.tuning:merge", "Add an adapter into its model's weights"),
    "train": ("miudo.cli.making:train", "Train a model from scratch"),
    "prepare": ("miudo.cli.making:prepare", "Turn text into packed tokens for training"),
    "select": ("miudo.cli.selecting:select", "Keep the text a student has most to learn from"),
    "ask": ("miudo.cli.asking:ask", "Have a model answer prompts: text to learn from"),
    "demo": ("miudo.cli.demo:demo", "The whole way, small: from text to a model that runs"),
    "eval": ("miudo.cli.evaluating:evaluate", "Perplexity on text, accuracy on tasks"),
    "compare": (
        "miudo.cli.evaluating:compare",
        "Models side by side: size, quality, speed, energy",
    ),
    "bench": ("miudo.cli.benching:bench", "How fast a model runs here, and how near the limit"),
    "doctor": ("miudo.cli.doctoring:doctor", "Whether miudo works here, and what mends it"),
    "config": ("miudo.cli.configuring:config", "Every setting, its value, where it comes from"),
    "completion": (
        "miudo.cli.completing:completion",
        "What makes the shell complete miudo's words",
    ),
    "version": ("miudo.cli.showing:version", "Versions of miudo and of what it stands on"),
}
"""Verb to (where its command is, its line of help): `miudo --help` imports none of them."""

SECTIONS = {
    "run": "Use a model",
    "catalog": "Get and keep models",
    "shrink": "Make a model",
    "eval": "Measure a model",
    "doctor": "This machine",
}
"""The first verb of each part of the help; a part goes on to the next one's first."""

ALIASES = {"ls": "list"}
"""Names that everybody's fingers know."""

_ELSEWHERE = {
    "download": "pull", "info": "show", "generate": "complete", "continue": "complete",
    "delete": "rm", "remove": "rm", "copy": "cp", "models": "list", "quantise": "quantize",
    "distil": "distill", "benchmark": "bench", "evaluate": "eval", "convert": "export",
    "chats": "chat", "server": "serve", "detokenize": "tokenize", "check": "doctor",
}  # fmt: skip
"""What other programs call it: named in the error for an unknown verb."""

_MAKE_PACKAGES = {"torch", "safetensors", "pyarrow", "datasketch", "matplotlib"}


class LazyGroup(click.Group):
    """A group that imports a verb when it is called, and ends in miudo's exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the verbs, part by part of the help."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Returns the verb's command, importing its module; None for an unknown verb."""
        name = ALIASES.get(name, name)
        if name not in VERBS:
            return None
        module, _, attribute = VERBS[name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Names the nearest verb when there is none of that name."""
        if args and args[0] not in (*VERBS, *ALIASES) and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], VERBS, n=2)  # `rum` is not only `rm`
            near = [_ELSEWHERE[args[0]]] if args[0] in _ELSEWHERE else near
            named = " or ".join(f"`{verb}`" for verb in near)
            cure = f"Did you mean {named}?" if near else "See `miudo --help`."
            raise click.UsageError(f"no verb is called {args[0]!r}. {cure}", ctx)
        from miudo.records import COMMAND  # here, where a verb is run: `--help` needs no records

        COMMAND.set(("miudo", *args))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the table of verbs from their lines of help alone."""
        parts: dict[str, list[tuple[str, str]]] = {}
        part = ""
        for name, (_, text) in VERBS.items():
            part = SECTIONS.get(name, part)
            parts.setdefault(part, []).append((name, text))
        widest = max(map(len, VERBS))
        for title, rows in parts.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), text) for name, text in rows])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Returns the verbs that begin so, from their lines of help alone."""
        from click.shell_completion import CompletionItem

        found = [(n, text) for n, (_, text) in VERBS.items() if n.startswith(incomplete)]
        return [CompletionItem(name, help=text) for name, text in found]

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the verb; an int that comes back is the exit code.

        A reader that has gone away ends it quietly and well.
        """
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:  # caught here, since click would make it a failure
            _leave_quietly()
            return None
        except KeyboardInterrupt as stop:  # training says here what it saved, and its own code
            click.echo(str(stop) or "interrupted", err=True)
            return int(getattr(stop, "exit_code", 130))
        return result

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command line; exits with the code of the error's kind."""
        run = functools.partial(
            super().main, args, prog_name, complete_var, standalone_mode=False, **extra
        )
        here = copy_context()  # the command that records name ends with the call
        if not standalone_mode:
            return here.run(run)
        sys.exit(here.run(_guarded, run))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", message="miudo %(version)s")
def cli() -> None:
    """Make small language models out of big ones, and run them on ordinary hardware.

    To begin: `miudo run` talks to the small model inside the package, `miudo doctor` tells
    whether all is well here.

    Every verb takes --json (the result as JSON on standard output), --config FILE.toml and
    --set key=value. With MIUDO_DEBUG=1 an error shows where in the program it arose.
    """


def main() -> NoReturn:
    """Runs the command line of this process; never returns."""
    warnings.showwarning = _say
    cli.main(prog_name="miudo")
    raise AssertionError("a command line ends in an exit code")


def _say(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as a user reads it, without the place in the program where it arose."""
    click.echo(f"warning: {message}", err=True)


def _guarded(body: Callable[[], Any]) -> int:
    """Returns the exit code of `body`, having printed its error."""
    try:
        result = body()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except Exception as error:  # noqa: BLE001 - the last door: a user sees a sentence
        return _report(error)
    return result if type(result) is int else 0


def _leave_quietly() -> None:
    """Whoever read our output has had enough: nothing more to say, not even at shutdown."""
    with contextlib.suppress(OSError, ValueError):  # a captured stream has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: Exception) -> int:
    if os.environ.get("MIUDO_DEBUG"):
        import traceback

        traceback.print_exception(error)
    known = _as_miudo(error)
    if known is None:
        message = f"internal error: {type(error).__name__}: {error}"
        click.echo(f"{message}. Please report it, with what MIUDO_DEBUG=1 prints", err=True)
        return 1
    click.echo(f"error: {known}", err=True)
    return known.exit_code


def _as_miudo(error: Exception) -> MiudoError | None:
    """Returns `error` as one of ours, None where it is a fault of the program."""
    if isinstance(error, MiudoError):
        return error
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in _MAKE_PACKAGES:
            return MissingError(
                f"this verb needs the package {package}",
                remedy="Install what making models takes: pip install 'miudo[make]'",
            )
        return None
    if isinstance(error, MemoryError):
        return ResourceError("too little memory", remedy="Use a smaller model, batch or context")
    if isinstance(error, OSError) and error.errno is not None:
        what = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceError(what, where=error.filename, remedy="Free some space")
        if error.errno == errno.ENOENT:
            return MissingError(what, where=error.filename, remedy="Check the path")
        return MiudoError(what, where=error.filename)
    return None
