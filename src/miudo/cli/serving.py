"""`miudo serve`.

For: a model over HTTP, for programs that speak OpenAI's, Anthropic's or Ollama's protocol.
Not for: the server itself (`miudo.serve`).
Read next: `miudo.serve.run`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.options import cache_type_option, complete_model, duration, parse_size, verb
from miudo.errors import MissingError, UsageError
from miudo.hub.resolve import embedded_models, model_path

if TYPE_CHECKING:
    from miudo.serve.run import RouteJob, ServeJob

__all__ = ["serve"]


@verb("serve")
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@click.option("--host", "address", default="127.0.0.1", show_default=True, envvar="MIUDO_HOST")
@click.option("--port", type=click.IntRange(0, 65535), default=4470, show_default=True)
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    help="A file of keys, one a line; the variable MIUDO_API_KEY is another way to give one.",
)
@click.option("--allow-host", multiple=True, help="A further name in the Host header.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the engine.")
@click.option(
    "--parallel",
    type=click.IntRange(1, 256),
    default=32,
    show_default=True,
    help="Requests that run at the same time.",
)
@click.option(
    "--queue",
    type=click.IntRange(0, 1 << 16),
    default=64,
    show_default=True,
    help="Requests that may wait beside them; more get 429.",
)
@click.option("--cache-mb", type=click.IntRange(1), help="Memory for keys and values, at most.")
@cache_type_option
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[MODEL:]NAME=PATH",
    help="A LoRA adapter of a model, the first if none is named; requests name MODEL:NAME or NAME.",
)
@click.option(
    "--on-demand", is_flag=True, help="Open models of `miudo list` when a request names them."
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="What open models may take together; idle ones make room for others.",
)
@click.option(
    "--keep-alive",
    type=duration,
    default="5m",
    show_default=True,
    help="How long a model that was opened on demand stays without a request.",
)
@click.option("--rate", type=click.IntRange(1), help="Requests of a key in a minute; more get 429.")
@click.option(
    "--deadline",
    type=duration,
    default="10m",
    show_default=True,
    help="How long an answer may take; a request's X-Request-Timeout may make it shorter.",
)
@click.option(
    "--patience",
    type=duration,
    default="8s",
    show_default=True,
    help="How long a client may take to send a request's head, or to take what is sent.",
)
@click.option(
    "--drain",
    type=duration,
    default="10s",
    show_default=True,
    help="What running requests have after SIGTERM.",
)
@click.option(
    "--log",
    type=click.Choice(["json", "text", "none"]),
    default="text",
    show_default=True,
    help="Lines on stderr, one a request; no prompts, no keys.",
)
@click.option(
    "--route",
    "table",
    type=click.Path(path_type=Path),
    help="A route table: its targets are served too, and the model auto chooses between them.",
)
def serve(models: tuple[str, ...], *, as_json: bool, **given: Any) -> None:
    """Serve MODEL, or the model inside the package, over HTTP.

    Clients of OpenAI's protocol take http://127.0.0.1:4470/v1 as their base URL, those of
    Anthropic's and Ollama's http://127.0.0.1:4470. A browser finds a page there.
    """
    from miudo.serve import run
    from miudo.serve.registered import registered

    route = None if given["table"] is None else _route(given["table"])
    job = _job(_named(models) if route is None else _with_targets(models, route), given, route)
    with contextlib.ExitStack() as stack:

        def ready(url: str) -> None:
            stack.enter_context(registered(url, job.models))
            _say(url, job.models, as_json=as_json)

        run.serve(job, ready=ready)


def _job(models: Mapping[str, Path], given: Mapping[str, Any], route: RouteJob | None) -> ServeJob:
    from miudo.engine.native import DEFAULT_CACHE_BYTES
    from miudo.serve.guard import Rules, hashed
    from miudo.serve.hosted import HostSettings
    from miudo.serve.house import Holding
    from miudo.serve.receiving import BodyLimits
    from miudo.serve.run import ServeJob
    from miudo.serve.wire import WireLimits

    cache, memory = given["cache_mb"], given["memory"]
    return ServeJob(
        models=models,
        address=given["address"],
        port=given["port"],
        adapters=_adapters(given["adapters"], models),
        on_demand=given["on_demand"],
        holding=Holding(
            None if memory is None else parse_size(memory, "--memory"), given["keep_alive"]
        ),
        host=HostSettings(
            threads=given["threads"],
            cache_bytes=DEFAULT_CACHE_BYTES if cache is None else cache * 10**6,
            cache=given["cache_type"],
            max_sequences=given["parallel"],
            max_waiting=given["queue"],
        ),
        rules=Rules(
            keys=[hashed(key) for key in _keys(given["key_file"])],
            hosts=given["allow_host"],
            limits=BodyLimits(patience_s=given["patience"]),
            per_minute=given["rate"],
            deadline_s=given["deadline"],
        ),
        wire=WireLimits(patience_s=given["patience"]),
        drain_s=given["drain"],
        log=given["log"],
        route=route,
    )


def _route(path: Path) -> RouteJob:
    from miudo.cli.routing import read_table
    from miudo.serve.run import RouteJob

    return RouteJob(read_table(path), path.parent)


def _with_targets(models: tuple[str, ...], route: RouteJob) -> dict[str, Path]:
    """Returns what was named and the table's models, these under their targets' names."""
    targets = {t.name: model_path(t.model) for t in route.table.targets if not t.remote}
    named = _named(models) if models or not targets else {}
    for name, path in targets.items():
        if named.setdefault(name, path) != path:
            raise UsageError(
                f"{name!r} is a model and a target", where="--route", remedy="Rename the target"
            )
    return named


def _adapters(given: tuple[str, ...], models: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """Returns the adapters' paths by model and name."""
    found: dict[str, dict[str, Path]] = {}
    for text in given:
        front, equals, path = text.partition("=")
        model, _, name = front.rpartition(":")
        model = model or next(iter(models))
        if not (equals and path and name) or model not in models:
            raise UsageError(
                f"{text!r} names no adapter of {', '.join(models)}",
                where="--adapter",
                remedy="Give [MODEL:]NAME=PATH",
            )
        if name in models or any(name in names for names in found.values()):
            raise UsageError(f"{name!r} is a name twice", where="--adapter", remedy="Give another")
        found.setdefault(model, {})[name] = Path(path)
    return found


def _named(models: tuple[str, ...]) -> dict[str, Path]:
    """Returns the models by the names that requests give: what was typed, or a file's stem."""
    if not models:
        path = model_path(None)
        return {name: p for name, p in embedded_models().items() if p == path}
    named: dict[str, Path] = {}
    for text in models:
        path = model_path(text)
        name = path.stem if text in (str(path), path.name) else text
        if name in named:
            raise UsageError(f"two models are called {name!r}", remedy="Rename one of the files")
        named[name] = path
    return named


def _keys(file: Path | None) -> tuple[str, ...]:
    keys = [os.environ["MIUDO_API_KEY"]] if os.environ.get("MIUDO_API_KEY") else []
    if file is not None:
        if not file.exists():
            raise MissingError("no such file", where=file, remedy="Write keys into it, one a line")
        keys += [line.strip() for line in file.read_text().splitlines() if line.strip()]
        if not keys:
            raise UsageError("holds no key", where=file, remedy="Write keys into it, one a line")
    return tuple(keys)


def _say(url: str, models: Mapping[str, Path], *, as_json: bool) -> None:
    from miudo.cli.options import emit

    value = {"schema": 1, "url": url, "models": list(models)}
    places = f"{url} (the page), {url}/v1 (OpenAI's clients)"
    emit(value, f"{', '.join(models)} at {places}; Ctrl-C ends it", as_json=as_json)
