"""Asks another server, and says its answer in this server's own frames.

For: remote targets of a route table, whole or as a stream.
Not for: how that server is spoken to (`miudo.engine.remote`).
Read next: `miudo.serve.routing.cascade`.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from miudo.engine.remote import RemoteGenerator
from miudo.errors import MiudoError
from miudo.protocol import Message, TextEvent
from miudo.serve.fields import Fields
from miudo.serve.routing.asked import Asked, spoken

__all__ = ["Distant", "far_frame", "far_reply"]

_DEFAULT_TOKENS = 1024  # a length must be named to that server
_MOST_TOKENS = 1 << 31
_END = object()


class Distant:
    """One request to another server, on a thread of its own; `connect` makes the connection."""

    def __init__(self, connect: Callable[..., RemoteGenerator], asked: Asked) -> None:
        fields = Fields(asked.body)
        self._messages = spoken(asked.body)
        most = asked.facts.max_tokens
        given = {"max_tokens": _DEFAULT_TOKENS if most is None else most}
        self._most = Fields(given).whole("max_tokens", 1, _MOST_TOKENS)
        temperature = fields.number("temperature", 0.0, 2.0, 1.0)
        top_p = max(fields.number("top_p", 0.0, 1.0, 1.0), 1e-6)
        seed = fields.take("seed")
        if seed is not None:
            seed = Fields({"seed": seed}).whole("seed", -(1 << 63), (1 << 63) - 1)
        self._generator = connect(temperature=temperature, top_p=top_p, seed=seed)
        self._news: asyncio.Queue[Any] = asyncio.Queue()
        self._gone = threading.Event()

    async def events(self) -> AsyncIterator[TextEvent]:
        """Yields the answer as it comes; leaving early ends the request. Raises MissingError."""
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._run, args=(loop,), daemon=True)
        thread.start()
        try:
            while (news := await self._news.get()) is not _END:
                if isinstance(news, MiudoError):
                    raise news
                yield news
        finally:
            self._gone.set()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        def tell(news: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._news.put_nowait, news)

        try:
            for event in self._generated(self._messages):
                if self._gone.is_set():
                    return
                tell(event)
            tell(_END)
        except MiudoError as error:
            tell(error)
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            tell(MiudoError(f"the other server's answer failed ({type(error).__name__})"))
        finally:
            self._generator.close()

    def _generated(self, messages: list[Message]) -> Iterator[TextEvent]:
        return self._generator.generate(messages, max_tokens=self._most)


def far_frame(target: str, kind: str) -> dict[str, Any]:
    """Returns what every part of a reply begins with."""
    name = f"chatcmpl-{secrets.token_hex(12)}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": target}


async def far_reply(distant: Distant, target: str) -> dict[str, Any]:
    """Returns the whole reply."""
    text, reason, usage = "", "stop", dict[str, int]()
    async for event in distant.events():
        text += event.text
        reason, usage = event.finish_reason or reason, {**usage, **event.usage}
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    told = {"usage": usage} if usage else {}
    return {**far_frame(target, "chat.completion"), "choices": [choice], **told}
