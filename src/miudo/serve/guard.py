"""Who may ask: hosts, origins, keys, and how much a request may carry.

For: one check before any route is looked up, the same for every spelling of a path.
Not for: what a route does.
Read next: `miudo.serve.app`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from miudo.errors import BusyError, ClosingError
from miudo.serve.faults import Fault, fault_of
from miudo.serve.rates import Rates
from miudo.serve.receiving import BodyLimits, dropped
from miudo.serve.replies import failure
from miudo.serve.standing import Standing

__all__ = ["OPEN_PATHS", "Guard", "Rules", "hashed"]

OPEN_PATHS = frozenset({"/health", "/ready"})
"""What may be asked without a key: whether the server is there."""
_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_MAX_KEY = 1024


@dataclass(frozen=True, slots=True)
class Rules:
    """Who may ask, how much, how often: `keys` are hashes, `per_minute` holds for each of them."""

    keys: Sequence[bytes] = ()
    hosts: Sequence[str] = ()
    limits: BodyLimits = field(default_factory=BodyLimits)
    per_minute: int | None = None
    deadline_s: float | None = None


def hashed(key: str) -> bytes:
    """Returns what is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


class Guard:
    """Answers in the application's place where a request may not pass.

    Without keys everybody on this machine may ask. The rules' `hosts` are names that a Host
    header may have beside this machine's: others come from a page that was told that its
    own name lies here (DNS rebinding). The key's hash becomes `scope["miudo.scope"]`. While the
    server does not stand ready only OPEN_PATHS and `open_paths`, files without a secret, are
    answered; these need no key and count to no rate. `full` says of a path whether whatever is
    posted there would be refused for those that wait: it is refused here. Whoever is refused is
    told before the body comes, which is dropped then.
    """

    def __init__(
        self,
        app: ASGIApp,
        standing: Standing,
        rules: Rules | None = None,
        *,
        open_paths: Iterable[str] = (),
        full: Callable[[str], bool] = lambda path: False,
    ) -> None:
        rules = rules or Rules()
        self._app, self._standing, self._keys = app, standing, tuple(rules.keys)
        self._open = OPEN_PATHS.union(open_paths)
        self._hosts = frozenset((*_LOCAL, *rules.hosts))
        self._rates = None if rules.per_minute is None else Rates(rules.per_minute)
        self._limits, self._full = rules.limits, full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        key = _key(headers)
        known = self._keys and self._known(key)
        scope["miudo.scope"] = hashed(key).hex() if known and key else ""
        refusal = self._refusal(scope, headers)
        if refusal is None:
            await self._app(scope, receive, send)
        elif any(name == b"expect" for name, _ in headers):  # told so it will not send its body
            await failure(scope["path"], refusal, connection="close")(scope, receive, send)
        else:
            await self._refuse(refusal, scope, receive, send)

    async def _refuse(self, refusal: Fault, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends all of the reply, and ends it when the body is over.

        A connection that closes with bytes unread, or before they come, is reset by the system,
        and the reply is lost with it.
        """

        async def kept_open(message: Message) -> None:
            more = {"more_body": True} if message["type"] == "http.response.body" else {}
            await send({**message, **more})

        await failure(scope["path"], refusal)(scope, receive, kept_open)
        await dropped(receive, self._limits)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _refusal(self, scope: Scope, headers: Sequence[tuple[bytes, bytes]]) -> Fault | None:
        path, whose = scope["path"], scope["miudo.scope"]
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or _without_port(hosts[0]) not in self._hosts:
            return _refused(421, "the Host header names no host of this server", "wrong_host")
        for origin in (value for name, value in headers if name == b"origin"):
            if not self._is_own(origin):
                return _refused(403, "pages of other origins may not ask", "wrong_origin")
        if path in self._open:
            return None
        if self._keys and not whose:
            needed = "a valid key is needed: Authorization: Bearer KEY, or x-api-key"
            return _refused(401, needed, "invalid_api_key")
        if self._standing.phase != "ready":
            return fault_of(ClosingError(f"the server is {self._standing.phase}"))
        if self._rates is not None and (wait := self._rates.take(whose)) is not None:
            error = BusyError("this key has made all requests that it may in a minute")
            error.retry_after_s = wait
            return fault_of(error)
        if scope["method"] == "POST" and self._full(path):
            error = BusyError(
                "as many requests wait or run as are taken", remedy="Try again in a moment"
            )
            return fault_of(error)
        return None

    def _is_own(self, origin: bytes) -> bool:
        scheme, _, host = origin.decode("latin-1").partition("://")
        return scheme in ("http", "https") and _without_port(host.encode()) in self._hosts

    def _known(self, key: str | None) -> bool:
        given = hashed(key or "")
        # Every key is compared, whole, so that time tells neither which nor how far.
        found = [hmac.compare_digest(given, known) for known in self._keys]
        return key is not None and any(found)


def _refused(status: int, message: str, code: str) -> Fault:
    return Fault(status, message, code=code)


def _without_port(host: bytes) -> str:
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        end = text.find("]") + 1
        name, rest = text[:end], text[end:]
    else:
        name, colon, port = text.partition(":")
        rest = colon + port
    fine = rest == "" or (rest.startswith(":") and rest[1:].isascii() and rest[1:].isdigit())
    return name if fine else ""


def _key(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    found: list[Any] = []
    for name, value in headers:
        text = value.decode("latin-1")
        if name == b"authorization" and text[:7].lower() == "bearer ":
            found.append(text[7:].strip())
        elif name == b"x-api-key":
            found.append(text.strip())
    if len(found) != 1 or not 0 < len(found[0]) <= _MAX_KEY:
        return None
    return str(found[0])
