"""Servers that programs of others talk to."""

from __future__ import annotations

from served import locked, server

__all__ = ["locked", "server"]
