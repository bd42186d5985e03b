"""Settings dataclasses as JSON values, and back.

For: what a record keeps of a method or a loss, and making either from it again.
Not for: settings from TOML and flags (`miudo.cli.settings`), or the ranges of values: a settings
object checks its own.
Read next: `miudo.compress.catalogue`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from miudo.errors import ConfigError

__all__ = ["settings_from_json", "settings_to_json"]

Settings = TypeVar("Settings")


def settings_to_json(settings: Any) -> dict[str, Any]:
    """Returns a settings dataclass as JSON values; `settings_from_json` gives it back."""
    return {f.name: _plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)}


def settings_from_json(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Returns the settings in `values`. Raises ConfigError for unknown keys or wrong values."""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(fields)):
        raise ConfigError(
            f"unknown setting {', '.join(unknown)}",
            where=kind.__name__,
            remedy=f"Known are {', '.join(fields)}",
        )
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    hints = typing.get_type_hints(kind)
    for name, value in given.items():
        enum, optional = _enum_in(hints[name])
        if enum is not None and not isinstance(value, Enum) and not (optional and value is None):
            given[name] = _as_enum(name, enum, value)
    try:
        return kind(**given)
    except TypeError as error:
        raise ConfigError(f"not settings of {kind.__name__} ({error})") from error


def _enum_in(hint: Any) -> tuple[type[Enum] | None, bool]:
    """Returns the enumeration that a field is of, if any, and whether it may be None."""
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    enums = [part for part in parts if isinstance(part, type) and issubclass(part, Enum)]
    return (enums[0] if enums else None), type(None) in parts


def _as_enum(name: str, kind: type[Enum], value: Any) -> Enum:
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(str(member.value) for member in kind)
        raise ConfigError(f"{name} is {value!r}", remedy=f"Known are {known}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value
