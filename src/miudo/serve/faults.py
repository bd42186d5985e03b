"""What went wrong, and in which protocol's words it is told.

For: one meaning of every error, and the body that the protocol of the path gives it.
Not for: raising errors (`miudo.errors`) or sending bodies (`miudo.serve.replies`).
Read next: `miudo.serve.replies`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from miudo.errors import (
    BusyError,
    ClosingError,
    DeadlineError,
    MissingError,
    MiudoError,
    RequestError,
    ResourceError,
)
from miudo.serve.fields import FieldError

__all__ = ["Fault", "body_for", "fault_of"]

_KINDS: tuple[tuple[type[MiudoError], int, str, str | None], ...] = (
    (RequestError, 400, "invalid_request_error", None),
    (MissingError, 404, "invalid_request_error", "model_not_found"),
    (ClosingError, 503, "server_error", "server_closing"),
    (BusyError, 429, "rate_limit_error", "server_busy"),
    (DeadlineError, 504, "timeout_error", "deadline_exceeded"),
    (ResourceError, 503, "server_error", "out_of_memory"),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """An HTTP status, what happened, the field that was wrong, and OpenAI's names for it.

    `wait_s` is when to ask again, for statuses that say so.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    wait_s: int = BusyError.retry_after_s


def fault_of(error: MiudoError) -> Fault:
    """Returns what is told of an error: no path, no traceback.

    Of an error that no client can have caused no more is told than that there was one.
    """
    for kind, status, name, code in _KINDS:
        if isinstance(error, kind):
            param = error.param if isinstance(error, FieldError) else None
            wait_s = (
                error.retry_after_s if isinstance(error, BusyError) else BusyError.retry_after_s
            )
            return Fault(status, str(error), name, param, code, wait_s)
    return Fault(500, "the server failed at this request", "server_error", None, "internal_error")


def body_for(path: str, fault: Fault) -> dict[str, Any]:
    """Returns the body in the shape of the protocol that `path` belongs to, else OpenAI's."""
    for start, shape in _SHAPES:
        if path == start or path.startswith(start + "/"):
            return shape(fault)
    return _openai(fault)


def _openai(fault: Fault) -> dict[str, Any]:
    error = {
        "message": fault.message, "type": fault.kind, "param": fault.param, "code": fault.code,
    }  # fmt: skip
    return {"error": error}


_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
    504: "timeout_error",
}  # fmt: skip


def _anthropic(fault: Fault) -> dict[str, Any]:
    known = "invalid_request_error" if fault.status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(fault.status, known)
    return {"type": "error", "error": {"type": kind, "message": fault.message}}


def _ollama(fault: Fault) -> dict[str, Any]:
    return {"error": fault.message}


_SHAPES: tuple[tuple[str, Callable[[Fault], dict[str, Any]]], ...] = (
    ("/v1/messages", _anthropic),
    ("/api", _ollama),
)
