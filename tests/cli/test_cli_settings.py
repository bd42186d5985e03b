import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from miudo.cli.settings import make_settings, parse_assignment
from miudo.errors import ConfigError, UsageError


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True)
class Outer:
    steps: int | None = None
    rate: float = 0.1
    fast: bool = False
    name: str = "x"
    colour: Colour = Colour.RED
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "a")
    out: Path | None = None
    inner: Inner = field(default_factory=Inner)


def test_every_kind_of_value_is_taken() -> None:
    values: dict[str, Any] = {
        "steps": 3,
        "rate": 1,
        "fast": True,
        "name": "y",
        "colour": "blue",
        "kind": "b",
        "sizes": [1, 2],
        "pair": [2, "b"],
        "out": "o",
        "inner": {"depth": 4},
    }
    made = make_settings(Outer, values)
    expected = Outer(3, 1.0, True, "y", Colour.BLUE, "b", (1, 2), (2, "b"), Path("o"), Inner(4))
    assert made == expected
    assert type(made.rate) is float
    assert make_settings(Outer, {"steps": None}) == Outer()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 1}, "Did you mean 'steps'?"),
        ({"inner": {"dept": 1}}, "Did you mean 'depth'?"),
        ({"inner": 3}, "a table of settings"),
        ({"steps": "many"}, "'many'.*whole number|'many'.*int"),
        ({"steps": True}, "True"),
        ({"steps": 1.5}, "1.5"),
        ({"rate": "x"}, "Give a number"),
        ({"fast": 1}, "Give bool"),
        ({"colour": "green"}, "red"),
        ({"kind": "c"}, "'a', 'b'"),
        ({"sizes": [1, "x"]}, "'x'"),
        ({"pair": [1]}, "2 values"),
    ],
)
def test_wrong_keys_and_values_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_settings(Outer, values, where="probe")
    assert "probe" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", {"a": 1}),
        ("a-b=true", {"a_b": True}),
        ("a.b=[1, 2]", {"a": {"b": [1, 2]}}),
        ("a=plain text", {"a": "plain text"}),
        ('a="1"', {"a": "1"}),
        ("a=x=y", {"a": "x=y"}),
        ("a=", {"a": ""}),
    ],
)
def test_assignments_are_toml_values_or_strings(text: str, value: dict[str, Any]) -> None:
    assert parse_assignment(text) == value


@pytest.mark.parametrize("text", ["a", "=1", ".a=1", "a..b=1"])
def test_assignments_to_nothing_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="key=value"):
        parse_assignment(text)
