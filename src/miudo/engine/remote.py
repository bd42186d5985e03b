"""A model behind an address: the OpenAI chat protocol, which most servers speak.

For: a large model elsewhere as teacher, judge or route target, as text alone.
Not for: models on this machine (`miudo.engine.answers`), or log-probabilities.
Read next: `miudo.protocol.Generator`, then `miudo.data.asked`, which asks it many times.

Nothing is sent before `generate` is called, and then to `url` alone: redirections are not
followed, and a key goes over an unencrypted line to this machine only.
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from miudo import __version__
from miudo.engine.chat_events import AgainError, body_lines, streamed_events, whole_events
from miudo.errors import MissingError, RequestError, UsageError
from miudo.files import open_regular
from miudo.protocol import Message, TextEvent

__all__ = ["KEY_VARIABLE", "RemoteGenerator", "RemoteSettings", "read_key"]

KEY_VARIABLE = "MIUDO_API_KEY"
"""The environment variable that holds the key unless another is named."""

_KEY_BYTES = 16 << 10
_BUSY = (408, 409, 425, 429)
_REACH = "Check the address and the network; what was asked so far is kept"


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """Which server and model, how it draws, and how patient we are.

    `url` is where `/chat/completions` is added ("http://127.0.0.1:8080/v1"). `seed` None sends
    none. A request is tried `attempts` times, after waits of `wait_s`, twice that and so on, or
    what the server asks for, never above `most_wait_s`. `timeout_s` is how long nothing may come.
    Raises UsageError for values out of range.
    """

    url: str
    model: str
    temperature: float = 0.7
    top_p: float = 1.0
    seed: int | None = 0
    attempts: int = 5
    wait_s: float = 1.0
    most_wait_s: float = 60.0
    timeout_s: float = 120.0
    connect_s: float = 10.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            host, known = parts.hostname, parts.scheme in ("http", "https")
        except ValueError:
            host, known = None, False
        if not known or not host:
            raise UsageError(
                f"url is {self.url[:200]!r}", remedy="Write http://HOST:PORT/v1 or https://..."
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UsageError(
                "url holds more than a host and a path",
                remedy=f"Give the key by {KEY_VARIABLE} or a file",
            )
        if not self.model:
            raise UsageError("no model is named", remedy="Name one that the server has")
        limits = {"temperature": (0.0, 10.0), "top_p": (1e-6, 1.0), "attempts": (1, 100)}
        limits |= dict.fromkeys(("timeout_s", "connect_s"), (0.001, 86400.0))
        limits |= dict.fromkeys(("wait_s", "most_wait_s"), (0.0, 86400.0))
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} is {value}, allowed {low:g} to {high:g}")

    @property
    def server(self) -> str:
        """Scheme and host, for errors and records."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


@dataclass(frozen=True, slots=True)
class _Key:
    text: str | None = field(default=None, repr=False)


class RemoteGenerator:
    """Implements `miudo.protocol.Generator`. May be used from several threads.

    `sleep` is what waits between attempts. Raises UsageError for a key that would travel
    unencrypted.
    """

    def __init__(
        self,
        settings: RemoteSettings,
        *,
        key: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        near = _is_this_machine(urlsplit(settings.url).hostname or "")
        if key and not near and urlsplit(settings.url).scheme != "https":
            raise UsageError(
                "a key would travel unencrypted",
                where=settings.server,
                remedy="Use https, or send no key",
            )
        self.settings, self._key, self._sleep = settings, _Key(key), sleep
        # A proxy for the world outside is none for this machine.
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(settings.timeout_s, connect=settings.connect_s),
            follow_redirects=False,
            trust_env=not near,
        )

    def close(self) -> None:
        """Closes connections that were kept."""
        self._client.close()

    def generate(self, messages: Sequence[Message], *, max_tokens: int) -> Iterator[TextEvent]:
        """Yields the answer as it comes; the last event has the reason of the end, and counts.

        What fails before the first piece is tried again. Raises MissingError for a server that
        cannot be reached, stays busy or breaks off, RequestError for one that refuses, DataError
        for an answer that is none of the protocol.
        """
        for attempt in range(1, self.settings.attempts + 1):
            begun = False
            try:
                for event in self._once(messages, max_tokens):
                    begun = True
                    yield event
                return
            except AgainError as again:
                if begun or attempt == self.settings.attempts:
                    tries = "" if begun else f", {attempt} times"
                    raise MissingError(
                        f"{again.what}{tries}", where=self.settings.server, remedy=again.remedy
                    ) from again
                pause = self.settings.wait_s * 2.0 ** (attempt - 1)
                asked = pause if again.after_s is None else again.after_s
                self._sleep(min(max(asked, 0.0), self.settings.most_wait_s))

    def _once(self, messages: Sequence[Message], max_tokens: int) -> Iterator[TextEvent]:
        s = self.settings
        body = {
            "model": s.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "max_tokens": max_tokens,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        } | ({} if s.seed is None else {"seed": s.seed})
        headers = {"user-agent": f"miudo/{__version__}", "accept": "text/event-stream"}
        if self._key.text:
            headers["authorization"] = f"Bearer {self._key.text}"
        url = f"{s.url.rstrip('/')}/chat/completions"
        try:
            with self._client.stream("POST", url, json=body, headers=headers) as response:
                self._check_status(response)
                lines = body_lines(response.iter_bytes(), s.server)
                if response.headers.get("content-type", "").startswith("application/json"):
                    yield from whole_events("\n".join(lines), s.server)
                else:
                    yield from streamed_events(lines, s.server)
        except httpx2.TimeoutException as error:
            raise AgainError(f"nothing came for {s.timeout_s:g} s", _REACH) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise AgainError(f"cannot be reached ({error or type(error).__name__})", _REACH) from (
                error
            )

    def _check_status(self, response: httpx2.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        said = _said(response)
        if status in _BUSY or status >= 500:
            wait = _seconds(response.headers.get("retry-after"))
            raise AgainError(f"answers {status}{said}", "Try again later", wait)
        cures = {
            401: f"Check the key in {KEY_VARIABLE}",
            403: "Check what the key permits",
            404: "Check the address and the model's name",
        }
        moved = f", and names {response.headers.get('location', 'nothing')[:200]}"
        raise RequestError(
            f"answers {status}{moved if 300 <= status < 400 else said}",
            where=self.settings.server,
            remedy=cures.get(status, "Check the address, the model's name and the settings"),
        )


def read_key(variable: str | None = None, file: Path | None = None) -> str | None:
    """Returns the key in `file`, or in the environment's `variable` (default MIUDO_API_KEY).

    None where neither was named and the default is not set. Raises MissingError where what was
    named holds none, UsageError for a key that is not one line of printable characters.
    """
    if file is not None:
        with open_regular(file, UsageError) as content:
            found, where = content.read(_KEY_BYTES).decode("ascii", "replace").strip(), str(file)
    else:
        where = variable or KEY_VARIABLE
        found = os.environ.get(where, "").strip()
    if not found:
        if variable is None and file is None:
            return None
        raise MissingError("holds no key", where=where, remedy="Put the key there")
    if not all(33 <= ord(c) <= 126 for c in found):
        raise UsageError("holds no key: not one line of plain characters", where=where)
    return found


def _said(response: httpx2.Response) -> str:
    """Returns what an error's body says, shortly; nothing where it cannot be read."""
    try:
        body = next(response.iter_bytes(4096), b"")
        values = json.loads(body)
        error = values.get("error", values)
        said = error.get("message", "") if isinstance(error, dict) else error
    except (httpx2.HTTPError, ValueError, AttributeError, RecursionError):
        return ""
    return f" ({str(said)[:200]})" if said else ""


def _seconds(text: str | None) -> float | None:
    """Returns a Retry-After in seconds; its other form, a date, counts as none."""
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
