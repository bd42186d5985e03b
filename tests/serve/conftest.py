"""A real server: a process of its own, asked over sockets."""

from __future__ import annotations

from served import locked, server

__all__ = ["locked", "server"]
