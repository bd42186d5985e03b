"""The server that programs of others talk to."""

from __future__ import annotations

from served import locked

__all__ = ["locked"]
