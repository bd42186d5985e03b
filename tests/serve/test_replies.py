"""Streams: what fails before the first line is an error as ever, later it is told in the stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from miudo.errors import BusyError, ResourceError
from miudo.serve.anthropic.messages import event
from miudo.serve.ollama.generate import line
from miudo.serve.replies import ClientGoneError, Mould, Told, encoded, events

Sent = list[dict[str, Any]]


async def streamed(
    lines: AsyncIterator[bytes], path: str, told: Told | None, sent: Sent, *, gone: bool = False
) -> None:
    """Runs a reply as a server would; the client stays until the end unless it is gone."""

    async def receive() -> dict[str, Any]:
        if not gone:
            await asyncio.sleep(30)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [], "asgi": {"spec_version": "2.4"}}
    await events(lines, told=told)(scope, receive, send)


async def failing(first: list[bytes], error: Exception) -> AsyncIterator[bytes]:
    for each in first:
        yield each
    raise error


def test_what_fails_before_the_first_line_is_raised_and_nothing_is_sent() -> None:
    sent: Sent = []
    with pytest.raises(BusyError):
        asyncio.run(streamed(failing([], BusyError("full")), "/v1/messages", event, sent))
    assert sent == []


@pytest.mark.parametrize(
    ("path", "told", "last"),
    [
        ("/v1/chat/completions", None, b'data: {"error":{"message":"no room",'),
        ("/v1/messages", event, b'event: error\ndata: {"type":"error","error":{"type":'),
        ("/api/chat", line, b'{"error":"no room"}\n'),
    ],
)
def test_what_fails_later_is_told_as_the_protocol_tells_it(
    path: str, told: Told | None, last: bytes
) -> None:
    sent: Sent = []
    lines = failing([b"one\n", b"two\n"], ResourceError("no room"))
    asyncio.run(streamed(lines, path, told, sent))
    assert sent[0]["status"] == 200
    body = b"".join(message["body"] for message in sent[1:])
    assert body.startswith(b"one\ntwo\n" + last)
    assert json.loads(body.removeprefix(b"one\ntwo\n").split(b"data: ")[-1])


def test_lines_that_are_there_at_once_go_out_in_one_piece_and_none_waits() -> None:
    async def lines() -> AsyncIterator[bytes]:
        yield b"one\n"
        yield b"two\n"
        await asyncio.sleep(0.01)
        yield b"three\n"
        await asyncio.sleep(0.01)

    sent: Sent = []
    asyncio.run(streamed(lines(), "/v1/chat/completions", None, sent))
    bodies = [(message["body"], message["more_body"]) for message in sent[1:]]
    assert bodies == [(b"one\ntwo\n", True), (b"three\n", True), (b"", False)]


def test_what_was_ready_is_sent_before_an_error_that_is_not_told() -> None:
    sent: Sent = []
    with pytest.raises(ZeroDivisionError):
        asyncio.run(
            streamed(failing([b"one\n"], ZeroDivisionError()), "/v1/completions", None, sent)
        )
    assert [message.get("body") for message in sent] == [None, b"one\n"]


@pytest.mark.parametrize("line", [b"a line\n", b"x" * 9000])
def test_of_a_reader_that_does_not_read_little_waits(line: bytes) -> None:
    made, go = 0, asyncio.Event()

    async def lines() -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(5000):
            made += 1
            yield line
            await asyncio.sleep(0)

    async def run() -> list[bytes]:
        bodies: list[bytes] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(30)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            bodies.append(message.get("body", b""))
            await go.wait()

        scope = {"type": "http", "path": "/", "headers": [], "asgi": {"spec_version": "2.4"}}
        sending = asyncio.create_task(events(lines())(scope, receive, send))
        for _ in range(2000):
            await asyncio.sleep(0)
        assert 0 < made <= 256
        assert made * len(line) <= (64 << 10) + 9000
        go.set()
        await sending
        return bodies

    assert b"".join(asyncio.run(run())) == line * 5000


@pytest.mark.parametrize("name", ["plain", "\0", '"\\u0000"', '\\"\0', "Größe"])
@pytest.mark.parametrize("text", ["", " word", '"', "\\", "\n\0\x1f\u2028", "é 🙂"])
def test_a_mould_filled_is_the_value_encoded(name: str, text: str) -> None:
    def made(text: str) -> dict[str, Any]:
        return {"model": name, "choices": [{"index": 0, "text": text, "reason": None}]}

    assert Mould(made).filled(text) == encoded(made(text))


def test_a_client_that_is_gone_ends_the_lines() -> None:
    ended = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            await asyncio.sleep(30)
            yield b""
        finally:
            ended.append(True)

    with pytest.raises(ClientGoneError):
        asyncio.run(streamed(endless(), "/api/chat", line, [], gone=True))
    assert ended
