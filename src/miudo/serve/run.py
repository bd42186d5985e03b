"""Sockets and signals: the server as a process.

For: `miudo serve`: bind, open the models, serve, drain on SIGTERM.
Not for: what is served (`miudo.serve.app`).
Read next: `miudo.serve.app`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import uvicorn

from miudo.errors import UsageError
from miudo.route.targets import RouteTable
from miudo.serve.app import make_app
from miudo.serve.guard import hashed
from miudo.serve.hosted import HostSettings, open_hosted
from miudo.serve.house import House
from miudo.serve.receiving import BodyLimits
from miudo.serve.routing.router import Router, open_router

__all__ = ["RouteJob", "ServeJob", "serve"]


@dataclass(frozen=True, slots=True)
class RouteJob:
    """How `auto` is answered; the classifier that `table` names lies relative to `beside`."""

    table: RouteTable
    beside: Path


@dataclass(frozen=True, slots=True)
class ServeJob:
    """What to serve (name to path) and where; `keys` are needed on any address but loopback."""

    models: Mapping[str, Path]
    address: str = "127.0.0.1"
    port: int = 4470
    keys: Sequence[str] = ()
    hosts: Sequence[str] = ()
    host: HostSettings = field(default_factory=HostSettings)
    limits: BodyLimits = field(default_factory=BodyLimits)
    drain_s: float = 10.0
    route: RouteJob | None = None


def serve(job: ServeJob, *, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serves until SIGTERM or SIGINT; those that run then have `drain_s` to end.

    `ready` is told the address when requests are taken.

    Raises UsageError for an address that others reach where no key is asked for, or a port that
    is taken; and what opening the models raises.
    """
    _check_address(job)
    listening = _bound(job)
    asyncio.run(_serve(job, listening, ready))


async def _serve(job: ServeJob, listening: socket.socket, ready: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()

    def post(deliver: Callable[[], None]) -> None:
        loop.call_soon_threadsafe(deliver)

    opened = (open_hosted(name, path, job.host, post=post) for name, path in job.models.items())
    house = House(opened)
    app = make_app(
        house,
        keys=[hashed(key) for key in job.keys],
        hosts=job.hosts,
        limits=job.limits,
        router=_router(job.route, house),
    )
    config = uvicorn.Config(
        app,
        http="h11",
        log_config=None,
        lifespan="off",
        ws="none",
        server_header=False,
        access_log=False,
        timeout_graceful_shutdown=max(1, round(job.drain_s)),
    )
    try:
        server = _Server(config, lambda: ready(_url(listening)))
        await server.serve(sockets=[listening])
    finally:
        house.close(0.0)


def _router(route: RouteJob | None, house: House) -> Router | None:
    if route is None:
        return None
    return open_router(
        route.table,
        route.beside,
        open_models=lambda: frozenset(hosted.name for hosted in house.models),
        free_bytes=lambda: int(psutil.virtual_memory().available),
    )


class _Server(uvicorn.Server):
    """Says when it takes requests."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


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
    if not loopback and not job.keys:
        raise UsageError(
            f"{job.address} is reached by other machines, and no key is asked for",
            remedy="Give a key (--key-file, MIUDO_API_KEY), or serve on 127.0.0.1",
        )


def _bound(job: ServeJob) -> socket.socket:
    family = socket.AF_INET6 if ":" in job.address else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((job.address, job.port))
    except OSError as error:
        listening.close()
        raise UsageError(
            f"port {job.port} on {job.address} cannot be had ({error.strerror})",
            remedy="Give another --port",
        ) from error
    listening.set_inheritable(True)
    return listening
