"""`miudo serve`.

For: a model over HTTP, for programs that speak OpenAI's protocol.
Not for: the server itself (`miudo.serve`).
Read next: `miudo.serve.run`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from miudo.cli.options import cache_type_option, verb
from miudo.errors import MissingError, UsageError
from miudo.hub.resolve import embedded_models, model_path

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
@cache_type_option
@click.option(
    "--drain",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Seconds that running requests have after SIGTERM.",
)
def serve(
    models: tuple[str, ...],
    *,
    address: str,
    port: int,
    key_file: Path | None,
    allow_host: tuple[str, ...],
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
        cache=running["cache_type"],
        max_sequences=running["parallel"],
        max_waiting=running["queue"],
    )
    job = run.ServeJob(
        models=_named(models),
        address=address,
        port=port,
        keys=_keys(key_file),
        hosts=allow_host,
        host=settings,
        drain_s=running["drain"],
    )
    run.serve(job, ready=lambda url: _say(url, job.models, as_json=as_json))


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
