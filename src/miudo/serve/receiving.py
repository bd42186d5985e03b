"""How a request's body comes in: bounded in bytes and in time.

For: the fields of a JSON body, and whose request it is.
Not for: what the fields mean (`miudo.serve.openai`).
Read next: `miudo.serve.fields`.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive

from miudo.serve.fields import Fields, parse_body

__all__ = ["BodyLimits", "asked_by", "dropped", "received"]


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What a request's body may take: bytes, and seconds to arrive.

    It has `patience_s`, and beyond that as long as it comes with `rate` bytes a second.
    """

    size_bytes: int = 8 << 20
    patience_s: float = 8.0
    rate: int = 4 << 10


async def received(request: Request, limits: BodyLimits) -> Fields:
    """Returns the fields of a JSON body.

    Raises HTTPException for another type, too many bytes, or a body that does not arrive;
    FieldError for what is no JSON object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "the body is no JSON. Send Content-Type: application/json")
    parts, size = [], 0
    try:
        begun = asyncio.get_running_loop().time()
        async with asyncio.timeout_at(begun + limits.patience_s) as timer:
            async for part in request.stream():
                size += len(part)
                timer.reschedule(begun + limits.patience_s + size / limits.rate)
                if size > limits.size_bytes:
                    raise HTTPException(413, f"the body has more than {limits.size_bytes} bytes")
                parts.append(part)
    except TimeoutError as error:
        raise HTTPException(408, "the body did not arrive in time") from error
    return Fields(parse_body(b"".join(parts)))


async def dropped(receive: Receive, limits: BodyLimits) -> None:
    """Takes a body that nobody wants, until it ends or has had the bytes or `patience_s`."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limits.patience_s):
            while size <= limits.size_bytes:
                message = await receive()
                if not message.get("more_body", False):  # the last part, or the client is gone
                    return
                size += len(message["body"])


def asked_by(request: Request) -> str:
    """Returns whose request it is, as the guard found: a key's hash, or "" without keys."""
    return str(request.scope["miudo.scope"])
