"""The page's files, read once, sent under a strict policy.

For: `/` and `/page/NAME`.
Not for: what the files do (`main.js` beside this).
Read next: `miudo.serve.app`.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["POLICY", "page_paths", "page_routes"]

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No text becomes markup: where a browser knows these, innerHTML itself is refused.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""What the page may load and run: its own files, and nothing that was made of text."""

_HERE = Path(__file__).parent
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",  # kept, but asked about: a new version shows at once
}


def page_paths() -> tuple[str, ...]:
    """Returns the paths of the page, which hold no secret and need no key."""
    return tuple(_files())


def page_routes() -> list[Route]:
    """Returns a route for each file; no other path is looked for on the disk."""
    return [Route(path, partial(_sent, _File(file))) for path, file in _files().items()]


class _File:
    """A file's bytes, and the tag by which a browser asks whether it has them."""

    def __init__(self, path: Path) -> None:
        self.body = path.read_bytes()
        self.kind = _KINDS[path.suffix]
        self.tag = f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


async def _sent(file: _File, request: Request) -> Response:
    headers = _HEADERS | {"etag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.kind)


def _files() -> dict[str, Path]:
    found = sorted(path for path in _HERE.iterdir() if path.suffix in _KINDS)
    named = {f"/page/{path.name}": path for path in found if path.suffix != ".html"}
    return {"/": _HERE / "index.html"} | named
