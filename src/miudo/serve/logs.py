"""The log: one line an event, on stderr, that no client can forge.

For: `--log`. Prompts, answers and keys are never given to it; what clients chose, such as paths,
is escaped and cut.
Not for: results, which go to stdout.
Read next: `miudo.serve.watch`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import sys
import threading
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

__all__ = ["Log", "LogKind"]

LogKind = Literal["json", "text", "none"]

_MOST_CHARACTERS = 200
_MOST_LINES = 4096
_PAUSE_S = 0.02  # to wake the writer for each line cost a sixth of a short request


class Log:
    """Writes events from a thread of its own, so that a reader of stderr who stops stops nobody.

    Lines that find no room then, or that it does not take, are counted and the count is told later.
    """

    def __init__(self, kind: LogKind = "text", out: TextIO | None = None) -> None:
        self._kind = kind
        self._out = sys.stderr if out is None else out
        self._lines: queue.Queue[str | None] = queue.Queue(_MOST_LINES)
        self._lost = 0
        self._counting = threading.Lock()  # of lines lost
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        if kind != "none":
            self._thread = threading.Thread(target=self._write, name="log", daemon=True)
            self._thread.start()

    def __call__(self, event: str, *, level: str = "info", **values: Any) -> None:
        """Writes an event. Values are numbers, texts or None, which is left out."""
        if self._thread is None:
            return
        if self._lost:
            with self._counting:
                values, self._lost = {**values, "lines_lost": self._lost}, 0
        line = _line(self._kind, event, level, values)
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._lose(1)

    def failure(self, event: str, error: BaseException, **values: Any) -> None:
        """Writes where an error of ours was raised; not what it says, which may quote a prompt."""
        frames, trace = [], error.__traceback__
        while trace is not None:
            name = trace.tb_frame.f_globals.get("__name__", "?")
            frames.append(f"{name}:{trace.tb_lineno}")
            trace = trace.tb_next
        where = " ".join(frames[-6:])
        self(event, level="error", error=type(error).__name__, where=where, **values)

    def adopt(self, *loggers: str) -> None:
        """Takes the warnings of these loggers over."""
        for name in loggers:
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [_Adopted(self)], False

    def close(self, wait_s: float = 1.0) -> None:
        """Writes what waits, within `wait_s`."""
        if self._thread is not None:
            self._closing.set()
            with contextlib.suppress(queue.Full):
                self._lines.put(None, timeout=wait_s)
            self._thread.join(wait_s)

    def _write(self) -> None:
        lines: list[str | None] = []
        while None not in lines:
            lines = [self._lines.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    lines.append(self._lines.get_nowait())
            said = [line for line in lines if line is not None]
            try:
                self._out.write("".join(said))
                self._out.flush()
            except (OSError, ValueError):  # nobody reads, for now or any more
                self._lose(len(said))
            self._closing.wait(_PAUSE_S)

    def _lose(self, lines: int) -> None:
        with self._counting:
            self._lost += lines


class _Adopted(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self._log.failure(record.name, record.exc_info[1])
        else:
            self._log(record.name, level=record.levelname.lower(), message=record.getMessage())


def _line(kind: LogKind, event: str, level: str, values: dict[str, Any]) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    shown = {name: _cut(value) for name, value in values.items() if value is not None}
    if kind == "json":  # ASCII alone: control characters and ANSI leave as \u escapes
        return json.dumps({"time": now, "level": level, "event": event, **shown}) + "\n"
    rest = " ".join(f"{name}={_plain(value)}" for name, value in shown.items())
    return f"{now} {level} {event} {rest}\n"


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _MOST_CHARACTERS:
        return value[:_MOST_CHARACTERS] + "..."
    return value


def _plain(value: Any) -> str:
    text = str(value)
    fine = text.isascii() and text.isprintable() and not set(text) & {" ", '"', "="}
    return text if fine else json.dumps(text)
