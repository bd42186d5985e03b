"""The tree of errors: what they say, and the exit code that each carries."""

from __future__ import annotations

import inspect

import pytest

from miudo import errors
from miudo.errors import ConfigError, MiudoError, ModelFileError, ResourceError

CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("MiudoError", 1),
        ("UsageError", 2),
        ("ConfigError", 2),
        ("ReferenceNameError", 2),
        ("CheckFailedError", 3),
        ("MissingError", 4),
        ("ResourceError", 5),
        ("ModelFileError", 1),
        ("DataError", 1),
        ("TrainingError", 1),
    ],
)
def test_exit_codes_are_those_of_the_manual(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code


def test_the_tree_drawn_at_the_top_names_every_class_once() -> None:
    drawing = [line for line in (errors.__doc__ or "").splitlines() if "──" in line]
    drawn = [line.split("──")[1].split()[0] for line in drawing]
    assert sorted([*drawn, "MiudoError"]) == sorted(errors.__all__)
    above: type[MiudoError] = MiudoError  # the last one that stands at the margin
    for line, name in zip(drawing, drawn, strict=True):
        kind, nested = getattr(errors, name), line.strip().startswith("│")
        assert kind.__base__ is (above if nested else MiudoError), name
        above = above if nested else kind


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_ours_and_says_where_and_what_to_do(kind: type[MiudoError]) -> None:
    assert inspect.getdoc(kind)
    error = kind("n_heads is 0", where="config.json", remedy="Give at least 1")
    assert str(error) == "config.json: n_heads is 0. Give at least 1"
    assert isinstance(error, MiudoError)


def test_place_and_remedy_may_be_missing() -> None:
    assert str(ConfigError("bad")) == "bad"
    assert str(ConfigError("bad", remedy="Mend it")) == "bad. Mend it"
    assert str(ConfigError("bad", where=7)) == "7: bad"


def test_control_characters_from_a_file_never_reach_the_terminal() -> None:
    error = ModelFileError("key \x1b[2J\u202e\r", where="a\x1b]0;x\x07\n.gguf")
    assert str(error) == "a\\x1b]0;x\\x07\n.gguf: key \\x1b[2J\\x202e\\x0d"


def test_a_huge_name_is_cut() -> None:
    assert len(str(ModelFileError("x" * 10**6, where="y" * 10**6))) < 21_000


def test_newlines_of_a_list_stay() -> None:
    assert str(ResourceError("differs:\n  a\n  b")) == "differs:\n  a\n  b"
