"""What a connection may do before anybody looks at what it asks: slow, endless, ambiguous requests.

For: uvicorn's protocol with a clock and with bounds. uvicorn has no time limit for a request's head
and none for a reader that does not read, and h11 takes Content-Length beside chunks, which two
programs read as two different requests. A protocol class of one's own is uvicorn's door for that.
Not for: who may ask (`miudo.serve.guard`) or how a body comes in (`miudo.serve.receiving`).
Read next: `miudo.serve.lifetime`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from miudo.serve.faults import Fault, body_for
from miudo.serve.replies import encoded

__all__ = ["CarefulProtocol", "WireLimits", "careful"]

_LINGER_S = 1.0


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Bounds of a connection.

    `patience_s` is how long a request's head may take, and how long a reader may take nothing of
    what waits for it. One more than `connections` is told 503.
    """

    patience_s: float = 8.0
    url_bytes: int = 8 << 10
    header_bytes: int = 32 << 10
    headers: int = 100
    connections: int = 1024


class CarefulProtocol(H11Protocol):
    """uvicorn's protocol under `bounds`; what breaks them is answered and closed.

    A closing connection lingers for a second and drops what still comes: closed at once, unread
    bytes would make the system reset it, and the reply be lost.
    """

    bounds = WireLimits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn = _StrictConnection(self.bounds)
        self._owed: asyncio.TimerHandle | None = None  # for what the client has to send
        self._stuck: asyncio.TimerHandle | None = None  # for what it has to take
        self._debt: object = None
        self._closing = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a connection; one too many is told so."""
        super().connection_made(transport)
        if len(self.connections) > self.bounds.connections:
            self.connections.discard(self)
            self._refuse(503, "as many connections are open as the server takes")
            return
        self._reckon()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._closing = True
        for timer in (self._owed, self._stuck):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes bytes in, and sees what is still owed."""
        if self._closing:
            return
        super().data_received(data)
        self._reckon()

    def send_400_response(self, msg: str) -> None:
        """Answers what h11 or the bounds refused; uvicorn calls it while it handles that error."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._refuse(status if status < 500 else 400, str(error or msg))

    def on_response_complete(self) -> None:
        """Goes on to the next request, or waits a little for the rest of this one's body."""
        super().on_response_complete()
        self._reckon()

    def pause_writing(self) -> None:
        """The client takes less than is sent: it has `patience_s` to take some of it."""
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client took what waited."""
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()

    def shutdown(self) -> None:
        """Closes, after the request that runs."""
        if self._closing:
            self.transport.close()
        else:
            super().shutdown()

    def _reckon(self) -> None:
        """Sets the clock for a head that has begun, or a body that nobody waits for any more.

        uvicorn stops its own, for idle connections, when such a body comes, and starts it no more.
        """
        if self._closing:
            return
        ours, theirs = self.conn.our_state, self.conn.their_state
        debt, wait = None, 0.0
        if theirs is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            debt, wait = ("head", self.cycle), self.bounds.patience_s
        elif theirs is h11.IDLE and self.timeout_keep_alive_task is None:
            debt, wait = ("next", self.cycle), float(self.timeout_keep_alive)
        elif theirs is h11.SEND_BODY and ours is h11.DONE:
            debt, wait = ("body", self.cycle), _LINGER_S
        if debt == self._debt:
            return
        if self._owed is not None:
            self._owed.cancel()
        self._debt, self._owed = debt, None
        if debt is not None:
            self._owed = self.loop.call_later(wait, self._give_up)

    def _give_up(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(408, "the request did not arrive in time")
        else:
            self.transport.close()

    def _watch_reader(self, before: int) -> None:
        def look() -> None:
            now = self.transport.get_write_buffer_size()
            if now >= before:
                self.transport.abort()
            else:
                self._watch_reader(now)

        self._stuck = self.loop.call_later(self.bounds.patience_s, look)

    def _refuse(self, status: int, message: str) -> None:
        self._closing = True
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # whoever works for it stops, and sends no more
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        body = encoded(body_for("", Fault(status, message)))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *([(b"retry-after", b"1")] if status == 503 else []),
        ]
        reason = HTTPStatus(status).phrase.encode()
        for event in (
            h11.Response(status_code=status, headers=headers, reason=reason),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        if self._owed is not None:
            self._owed.cancel()
        self._owed = self.loop.call_later(_LINGER_S, self.transport.close)


def careful(bounds: WireLimits) -> Callable[..., CarefulProtocol]:
    """Returns the protocol class with these bounds, as uvicorn's `http` setting takes it."""
    return type("CarefulProtocol", (CarefulProtocol,), {"bounds": bounds})


class _StrictConnection(h11.Connection):
    """Refuses requests that are too large, or that others may read in another way."""

    def __init__(self, bounds: WireLimits) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=bounds.header_bytes)
        self._bounds = bounds

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._check(event)
        return event

    def _check(self, request: h11.Request) -> None:
        bounds, headers = self._bounds, list(request.headers)
        if len(request.target) > bounds.url_bytes:
            raise h11.RemoteProtocolError("the URL is too long", 414)
        size = sum(len(name) + len(value) + 4 for name, value in headers)
        if len(headers) > bounds.headers or size > bounds.header_bytes:
            raise h11.RemoteProtocolError("the headers are too many or too large", 431)
        names = {name for name, _ in headers}
        if b"transfer-encoding" in names:
            if b"content-length" in names:
                raise h11.RemoteProtocolError("Content-Length and Transfer-Encoding are given")
            if request.http_version < b"1.1":
                raise h11.RemoteProtocolError("HTTP/1.0 has no Transfer-Encoding")
