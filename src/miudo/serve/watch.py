"""Around every request: an id, a deadline, a count and a line in the log.

For: what an operator sees of requests, refused ones included.
Not for: refusing them (`miudo.serve.guard`).
Read next: `miudo.serve.guard`.
"""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from miudo.serve.errand import Errand, begin_errand
from miudo.serve.faults import Fault
from miudo.serve.logs import Log
from miudo.serve.replies import failure
from miudo.serve.standing import Standing

__all__ = ["DEADLINE_HEADER", "ID_HEADER", "Watch"]

ID_HEADER = b"x-request-id"
DEADLINE_HEADER = b"x-request-timeout"

_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Watch:
    """Lets requests through to `app`; `paths` are those that are counted by their names.

    A request may bring its id, and seconds after which it is given up, at most `deadline_s`.
    """

    def __init__(
        self,
        app: ASGIApp,
        standing: Standing,
        log: Log,
        *,
        paths: Collection[str] = (),
        deadline_s: float | None = None,
    ) -> None:
        self._app, self._standing, self._log = app, standing, log
        self._paths, self._deadline_s = frozenset(paths), deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, counts and logs one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        errand, begun, status = Errand(_id(scope)), time.monotonic(), 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (ID_HEADER, errand.id.encode())]
            await send(message)

        self._standing.open += 1
        begin_errand(errand)
        try:
            wait = _wanted_s(scope)
            if wait is not None and not 0 < wait < math.inf:
                wrong = Fault(400, "X-Request-Timeout is no number of seconds above 0")
                await failure(scope["path"], wrong)(scope, receive, sent)
                return
            bounds = [bound for bound in (wait, self._deadline_s) if bound is not None]
            errand.ends = begun + min(bounds) if bounds else None
            await self._app(scope, receive, sent)
        finally:
            errand.over = True
            self._standing.open -= 1
            path = scope["path"]
            self._standing.answers[path if path in self._paths else "other", status] += 1
            self._write(scope, errand, status, time.monotonic() - begun)

    def _write(self, scope: Scope, errand: Errand, status: int, seconds: float) -> None:
        first = errand.first_token_s
        self._log(
            "request",
            id=errand.id,
            method=scope["method"],
            path=scope["path"],
            status=status or None,  # none: the client had gone before
            duration_ms=round(seconds * 1e3, 1),
            key=scope.get("miudo.scope", "")[:8] or None,  # of its hash
            model=errand.model,
            prompt_tokens=errand.prompt_tokens or None,
            new_tokens=errand.new_tokens or None,
            first_token_ms=None if first is None else round(first * 1e3, 1),
        )


def _id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == ID_HEADER and _ID.fullmatch(value):
            return str(value.decode())
    return f"req-{secrets.token_hex(8)}"


def _wanted_s(scope: Scope) -> float | None:
    """Returns the header's seconds, NaN for what is no number."""
    for name, value in scope["headers"]:
        if name == DEADLINE_HEADER:
            try:
                return float(value)
            except ValueError:
                return math.nan
    return None
