"""Sockets and signals: the server as a process.

For: `miudo serve`: bind, put the parts together, serve.
Not for: what is served (`miudo.serve.app`), or when it ends (`miudo.serve.lifetime`).
Read next: `miudo.serve.app`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import uvicorn

from miudo.errors import MiudoError, UsageError
from miudo.hub.resolve import resolve
from miudo.names import StoreRef, parse_reference
from miudo.serve.app import make_app
from miudo.serve.guard import Rules
from miudo.serve.hosted import HostOffer, HostSettings
from miudo.serve.house import Holding, House
from miudo.serve.lifetime import Lifetime
from miudo.serve.logs import Log, LogKind
from miudo.serve.standing import Standing
from miudo.serve.wire import WireLimits, careful

if TYPE_CHECKING:
    from miudo.route.targets import RouteTable
    from miudo.serve.routing.router import Router

__all__ = ["RouteJob", "ServeJob", "serve"]

_SEND_BYTES = 256 << 10  # what the system holds for a reader that does not read
_FILES_KEPT = 32  # of those that may be open, for what is no connection


@dataclass(frozen=True, slots=True)
class RouteJob:
    """How `auto` is answered; the classifier that `table` names lies relative to `beside`."""

    table: RouteTable
    beside: Path


@dataclass(frozen=True, slots=True)
class ServeJob:
    """What to serve (name to path) and where; keys are needed on any address but loopback.

    `adapters` are paths by model and name. With `on_demand` a request may also name a model of
    this machine's store, which is opened then.
    """

    models: Mapping[str, Path]
    address: str = "127.0.0.1"
    port: int = 4470
    adapters: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    on_demand: bool = False
    holding: Holding = field(default_factory=Holding)
    host: HostSettings = field(default_factory=HostSettings)
    rules: Rules = field(default_factory=Rules)
    wire: WireLimits = field(default_factory=WireLimits)
    drain_s: float = 10.0
    log: LogKind = "text"
    route: RouteJob | None = None


def serve(job: ServeJob, *, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serves until a signal; requests that run then have `drain_s` to end.

    `ready` is told the address when requests are taken.

    Raises UsageError for an address that others reach where no key is asked for, or a port that
    is taken; what opening the models raises; MiudoError when an engine failed.
    """
    _check_address(job)
    listening = _bound(job)
    log = Log(job.log)
    try:
        asyncio.run(_serve(job, listening, ready, log))
    finally:
        log.close()


async def _serve(
    job: ServeJob, listening: socket.socket, ready: Callable[[str], None], log: Log
) -> None:
    log.adopt("uvicorn.error", "asyncio")
    house, standing = _house(job), Standing()
    config = uvicorn.Config(
        make_app(house, standing, log, job.rules, _router(job.route, house)),
        http=careful(_wire(job.wire)),  # type: ignore[arg-type]
        log_config=None,
        lifespan="off",
        ws="none",
        server_header=False,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    url = _url(listening)
    server = Lifetime(config, house, standing, log, drain_s=job.drain_s, ready=lambda: ready(url))
    log("start", url=url, models=", ".join(job.models))
    await server.serve(sockets=[listening])
    log("end", phase=standing.phase)
    if server.failure is not None:
        raise server.failure


def _house(job: ServeJob) -> House:
    loop = asyncio.get_running_loop()

    def post(deliver: Callable[[], None]) -> None:
        loop.call_soon_threadsafe(deliver)

    def offer(name: str, path: Path) -> HostOffer:
        return HostOffer(name, path, job.host, post, job.adapters.get(name, {}))

    def find(name: str) -> HostOffer | None:
        """A name of the store alone: what comes over the network is no path and no address."""
        try:
            reference = parse_reference(name)
            return offer(name, resolve(reference)) if isinstance(reference, StoreRef) else None
        except MiudoError:
            return None

    kept = {name: offer(name, path) for name, path in job.models.items()}
    free = lambda: int(psutil.virtual_memory().available)  # noqa: E731
    more = {"find": find} if job.on_demand else {}
    return House(kept, job.holding, free_bytes=free, **more)


def _router(route: RouteJob | None, house: House) -> Router | None:
    if route is None:
        return None
    from miudo.serve.routing.router import open_router

    return open_router(
        route.table,
        route.beside,
        open_models=lambda: frozenset(hosted.name for hosted in house.models),
        free_bytes=lambda: int(psutil.virtual_memory().available),
    )


def _wire(limits: WireLimits) -> WireLimits:
    """Fewer connections where fewer files may be open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return replace(limits, connections=max(1, min(limits.connections, files - _FILES_KEPT)))


def _url(listening: socket.socket) -> str:
    address, port = listening.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _check_address(job: ServeJob) -> None:
    loopback = job.address == "localhost"
    try:
        loopback = loopback or ipaddress.ip_address(job.address).is_loopback
    except ValueError as error:
        if not loopback:
            raise UsageError(
                f"{job.address!r} is no address", remedy="Give one, such as 127.0.0.1"
            ) from error
    if not loopback and not job.rules.keys:
        raise UsageError(
            f"{job.address} is reached by other machines, and no key is asked for",
            remedy="Give a key (--key-file, MIUDO_API_KEY), or serve on 127.0.0.1",
        )


def _bound(job: ServeJob) -> socket.socket:
    family = socket.AF_INET6 if ":" in job.address else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)  # connections have it
    try:
        listening.bind((job.address, job.port))
    except OSError as error:
        listening.close()
        raise UsageError(
            f"port {job.port} on {job.address} cannot be had ({error.strerror})",
            remedy="Give another --port; `miudo ps` lists servers of yours",
        ) from error
    listening.set_inheritable(True)
    return listening
