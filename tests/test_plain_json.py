"""JSON of our own files and of data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miudo.errors import CheckpointError, DataError, MissingError
from miudo.plain_json import read_json, read_line, write_json


def test_json_is_readable_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": [1, 2.5]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert "é" in text
    assert json.loads(text) == {"é": [1, 2.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


def test_what_is_no_object_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1]})
    assert read_json(path) == {"a": [1]}
    path.write_text('{"a": 1,\n "b": }')
    with pytest.raises(CheckpointError) as caught:
        read_json(path, CheckpointError, remedy="Resume from step 5")
    told = "not JSON (Expecting value, line 2, character 7). Resume from step 5"
    assert str(caught.value) == f"{path}: {told}"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match=r"not JSON .*utf-8"):
        read_json(path)
    with pytest.raises(MissingError):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a":\n', r"f, line 3: not JSON \(Expecting value, character 6\)"),
        (b'{"a":\r\n', r"f, line 3: not JSON \(Expecting value, character 6\)"),
        ("", r"not JSON \(Expecting value, character 1\)"),
        ("[" * 100_000, r"not JSON \("),
        ("[]", "is a JSON list, not an object"),
        ("null", "is a JSON NoneType, not an object"),
    ],
)
def test_a_line_that_ends_early_is_told_as_one_line(text: str | bytes, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_line(text, "f, line 3")
