"""Every error that miudo raises on purpose, as one tree.

For: telling a user what is wrong, where, and what to do about it.
Not for: broken invariants of our own (those are `assert`) or errors of the operating system
that carry their own good message.
Read next: `miudo.cli.main`, which turns this tree into exit codes.

    MiudoError                 exit 1
    ├── UsageError             exit 2   a flag, a setting, a name
    │   ├── ConfigError                 a ModelConfig or a settings object that cannot be
    │   └── ReferenceNameError          a model reference that cannot be parsed
    ├── CheckFailedError       exit 3   a check ran and said no (parity, self-check, budget)
    ├── MissingError           exit 4   a file, model or network that is not there
    ├── ResourceError          exit 5   too little memory or disk
    ├── ModelFileError                  safetensors, GGUF, config.json
    ├── TokenizerError                  tokenizer.json, chat template
    ├── DataError                       training or evaluation text
    ├── CheckpointError                 a training run's saved state
    ├── RequestError                    ids, sampling settings, a conversation
    ├── BusyError                       a server with as many requests as it takes
    │   └── ClosingError                a server that is not open yet, or no more
    ├── DeadlineError                   an answer that came too late to be wanted
    └── TrainingError                   a run that diverged or was locked by another
"""

from __future__ import annotations

__all__ = [
    "BusyError",
    "CheckFailedError",
    "CheckpointError",
    "ClosingError",
    "ConfigError",
    "DataError",
    "DeadlineError",
    "MissingError",
    "MiudoError",
    "ModelFileError",
    "ReferenceNameError",
    "RequestError",
    "ResourceError",
    "TokenizerError",
    "TrainingError",
    "UsageError",
]


class MiudoError(Exception):
    """What happened, where, the value, and the remedy, in one printable message.

    `where` is a file, field, flag or offset; `remedy` is an imperative sentence.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        what = _escape(self.what, 20_000)
        text = f"{_escape(self.where, 512)}: {what}" if self.where else what
        return f"{text}. {self.remedy}" if self.remedy else text


class UsageError(MiudoError):
    """A flag, setting or argument that is unknown or out of its range."""

    exit_code = 2


class ConfigError(UsageError):
    """A `ModelConfig` or settings value that no model or run can have."""


class ReferenceNameError(UsageError):
    """A model reference that cannot be parsed."""


class CheckFailedError(MiudoError):
    """A check ran and its answer is no."""

    exit_code = 3


class MissingError(MiudoError):
    """A file, a model, an optional package or the network is not there."""

    exit_code = 4


class ResourceError(MiudoError):
    """Too little memory or disk for what was asked."""

    exit_code = 5


class ModelFileError(MiudoError):
    """A model file or folder that is damaged, hostile or of a kind miudo does not read."""


class TokenizerError(MiudoError):
    """A tokenizer or chat template that cannot be used."""


class DataError(MiudoError):
    """Text that cannot be read, or too little of it."""


class CheckpointError(MiudoError):
    """A training checkpoint that is damaged, foreign or newer than this program."""


class RequestError(MiudoError):
    """Ids, sampling settings or a conversation that the engine refuses."""


class BusyError(MiudoError):
    """As many requests wait or run as the server takes; `retry_after_s` says when to ask again."""

    retry_after_s = 1


class ClosingError(BusyError):
    """The server, or the model that is asked for, opens or closes."""


class DeadlineError(MiudoError):
    """A request whose time was over before its answer was whole."""


class TrainingError(MiudoError):
    """A training run that diverged, or whose folder another run holds."""


def _escape(text: str, most: int) -> str:
    """Names come from files: control characters must not reach a terminal or a log."""
    shown = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text[:most])
    return shown if len(text) <= most else f"{shown[:most]} ..."
