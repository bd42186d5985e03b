"""`miudo serve`.

For: a model over HTTP, for programs that speak OpenAI's protocol.
Not for: the server itself (`miudo.serve`).
Read next: `miudo.serve.run`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miudo.cli.options import verb
from miudo.errors import MissingError, UsageError
from miudo.hub.resolve import embedded_models, model_path

if TYPE_CHECKING:
    from miudo.serve.run import RouteJob

__all__ = ["serve"]


@verb("serve")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
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
@click.option(
    "--drain",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Seconds that running requests have after SIGTERM.",
)
@click.option(
    "--route",
    "table",
    type=click.Path(path_type=Path),
    help="A route table: its targets are served too, and the model auto chooses between them.",
)
def serve(
    models: tuple[str, ...],
    *,
    address: str,
    port: int,
    key_file: Path | None,
    allow_host: tuple[str, ...],
    table: Path | None,
    as_json: bool,
    **running: Any,
) -> None:
    """Serve MODEL, or the model inside the package, over HTTP.

    Clients of OpenAI's protocol take http://127.0.0.1:4470/v1 as their base URL.
    """
    from miudo.engine.native import DEFAULT_CACHE_BYTES
    from miudo.serve import run
    from miudo.serve.hosted import HostSettings

    cache = running["cache_mb"]
    settings = HostSettings(
        threads=running["threads"],
        cache_bytes=DEFAULT_CACHE_BYTES if cache is None else cache * 10**6,
        max_sequences=running["parallel"],
        max_waiting=running["queue"],
    )
    route = None if table is None else _route(table)
    job = run.ServeJob(
        models=_named(models) if route is None else _with_targets(models, route),
        address=address,
        port=port,
        keys=_keys(key_file),
        hosts=allow_host,
        host=settings,
        drain_s=running["drain"],
        route=route,
    )
    run.serve(job, ready=lambda url: _say(url, job.models, as_json=as_json))


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
    emit(value, f"{', '.join(models)} at {url}/v1 (Ctrl-C ends it)", as_json=as_json)
