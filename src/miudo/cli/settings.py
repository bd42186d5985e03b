"""Settings objects from plain values: what TOML, `--set` and flags become.

For: building a frozen dataclass from a mapping, every key and type checked, with a cure.
Not for: ranges: a settings object checks its own.
Read next: `miudo.cli.options`, where the values come from.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from miudo.errors import ConfigError, DataError, UsageError
from miudo.files import open_regular

__all__ = ["check_keys", "check_table", "make_settings", "parse_assignment", "read_toml"]

T = TypeVar("T")
_MAX_TOML_BYTES = 1 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the values of a settings file. Raises UsageError for one that is no TOML."""
    with open_regular(path, DataError) as file:
        content = file.read(_MAX_TOML_BYTES)
    try:
        return tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"not TOML ({error})", where=path, remedy="Write key = value") from error


def parse_assignment(text: str) -> dict[str, Any]:
    """Returns `a.b=value` as {"a": {"b": value}}; a value that is no TOML is a string."""
    key, equals, raw = text.partition("=")
    parts = [part.strip().replace("-", "_") for part in key.split(".")]
    if not equals or not all(parts):
        raise UsageError(f"--set {text!r} assigns nothing", remedy="Write --set key=value")
    try:
        value: Any = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    for part in reversed(parts):
        value = {part: value}
    result: dict[str, Any] = value
    return result


def check_keys(given: Iterable[str], known: Iterable[str], *, where: str = "settings") -> None:
    """Raises ConfigError naming the first unknown key and the nearest known one."""
    names = sorted(known)
    for key in given:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            cure = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(names)}"
            raise ConfigError(f"no setting is called {key!r}", where=where, remedy=cure)


def check_table(values: Any, *, where: str) -> None:
    """Raises ConfigError for what is no table of settings."""
    if not isinstance(values, Mapping):
        raise _refused(where, values, "a table of settings")


def make_settings(kind: type[T], values: Mapping[str, Any], *, where: str = "settings") -> T:
    """Returns `kind(**values)`, each value checked against its field's type.

    Whole numbers are taken for floats, strings for enumerations and paths, lists for tuples,
    mappings for nested settings. Raises ConfigError naming key, value and what is allowed.
    """
    check_table(values, where=where)
    hints = typing.get_type_hints(kind)
    fields = [f for f in dataclasses.fields(kind) if f.init]  # type: ignore[arg-type]
    check_keys(values, {f.name for f in fields}, where=where)
    nothing = dataclasses.MISSING
    for field in fields:
        required = field.default is nothing and field.default_factory is nothing
        if required and field.name not in values:
            raise ConfigError(f"{field.name} is missing", where=where, remedy=f"Add {field.name}")
    return kind(
        **{key: _convert(value, hints[key], f"{where}: {key}") for key, value in values.items()}
    )


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _convert_union(value, arguments, where)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise _refused(where, value, f"one of {', '.join(map(repr, arguments))}")
    if origin is tuple and isinstance(value, list | tuple):
        items = [arguments[0]] * len(value) if arguments[-1] is ... else list(arguments)
        if len(items) == len(value):
            pairs = enumerate(zip(value, items, strict=True), start=1)
            return tuple(_convert(v, h, f"{where}, number {i}") for i, (v, h) in pairs)
        raise _refused(where, value, f"{len(items)} values")
    if isinstance(hint, type):
        return _convert_plain(value, hint, where)
    if isinstance(origin, type) and isinstance(value, Mapping) and issubclass(origin, Mapping):
        return dict(value)
    raise _refused(where, value, "a list" if origin is tuple else str(hint))


def _convert_union(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    nested = [choice for choice in choices if dataclasses.is_dataclass(choice)]
    if isinstance(value, Mapping) and len(nested) == 1:  # its own errors name the inner key
        return _convert(value, nested[0], where)
    for choice in choices:
        try:
            return _convert(value, choice, where)
        except ConfigError:
            continue
    names = " or ".join(getattr(c, "__name__", str(c)) for c in choices if c is not type(None))
    raise _refused(where, value, names)


def _convert_plain(value: Any, hint: type, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return make_settings(hint, value, where=where)
        raise _refused(where, value, "a table of settings")
    if issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError:
            raise _refused(where, value, f"one of {[m.value for m in hint]}") from None
    if hint is float and type(value) is int:
        return float(value)
    if issubclass(hint, Path) and isinstance(value, str | Path):
        return Path(value)
    if type(value) is hint:  # not isinstance: true must not become the number 1
        return value
    raise _refused(
        where, value, {int: "a whole number", float: "a number"}.get(hint, hint.__name__)
    )


def _refused(where: str, value: Any, allowed: str) -> ConfigError:
    return ConfigError(f"the value is {value!r}", where=where, remedy=f"Give {allowed}")
