"""Records: what is written comes back, and a damaged one is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miudo.errors import MissingError, ModelFileError
from miudo.records import RECORD_FILE, Artefact, Measurement, Record, environment

SHA = "ab" * 32
texts = st.text(max_size=20)
measurements = st.builds(
    Measurement,
    texts,
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
    texts,
    st.booleans(),
)
leaves = st.builds(
    Record,
    verb=texts,
    name=texts,
    settings=st.dictionaries(texts, st.integers() | texts | st.lists(st.booleans())),
    seed=st.none() | st.integers(0, 2**64 - 1),
    inputs=st.lists(st.builds(Artefact, texts, texts, st.just(SHA)), max_size=2).map(tuple),
    outputs=st.dictionaries(texts, st.just(SHA), max_size=2),
    measurements=st.lists(measurements, max_size=2).map(tuple),
    licence=st.none() | texts,
    notes=st.lists(texts, max_size=2).map(tuple),
    command=st.lists(texts, max_size=2).map(tuple),
    environment=st.just({"python": "3"}),
    created=st.just("2026-01-01T00:00:00+00:00"),
)


def minimal(**changes: Any) -> dict[str, Any]:
    return Record(verb="train", name="teacher").to_json() | changes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(leaves, st.lists(leaves, max_size=2))
def test_a_record_comes_back_equal_with_its_parents(
    tmp_path: Path, leaf: Record, parents: list[Record]
) -> None:
    values = leaf.to_json() | {"parents": [parent.to_json() for parent in parents]}
    record = Record.from_json(values)
    assert record.parents == tuple(parents)
    record.write(tmp_path)
    assert Record.read(tmp_path) == record


def test_what_was_not_given_is_filled_in() -> None:
    record = Record(verb="train", name="teacher")
    assert record.environment == environment()
    assert {"python", "system", "processor", "numpy"} <= record.environment.keys()
    assert record.created.endswith("+00:00")
    assert record.schema == 1


def test_a_folder_without_a_record_has_none(tmp_path: Path) -> None:
    assert Record.read(tmp_path) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (minimal(schema=2), "record schema 2, this miudo reads 1"),
        (minimal(schema=None), "record schema None"),
        (minimal(colour="red"), "colour"),
        (minimal(inputs=[{"role": "x"}]), "not a record"),
        (minimal(inputs=5), "not a record"),
        (minimal(inputs=["x"]), "not a record"),
        (minimal(parents=["x"]), "not a record"),
        (minimal(parents=[{"schema": 1}]), "verb"),
        (minimal(notes=7), "not a record"),
        (minimal(notes=[7]), "notes and command holds '7', not a str"),
        (minimal(settings="x"), "settings holds 'x', not a dict"),
        (minimal(verb=None), "verb holds 'None', not a str"),
        (minimal(inputs=[{"role": 1, "name": "a", "sha256": "b"}]), "inputs holds '1'"),
        (
            minimal(measurements=[{"name": "n", "value": "1", "unit": "s", "method": ""}]),
            "measurements holds '1', not a float",
        ),
        ({"schema": 1, "name": "x"}, "verb"),
    ],
)
def test_values_that_are_no_record_are_refused(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    (tmp_path / RECORD_FILE).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ModelFileError, match=message) as caught:
        Record.read(tmp_path)
    assert caught.value.where == str(tmp_path / RECORD_FILE)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"\xff\xfe", b'{"schema": 1', b"[" * 100_000],
    ids=["empty", "cut", "list", "number", "no UTF-8", "cut later", "deep"],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECORD_FILE).write_bytes(content)
    with pytest.raises(ModelFileError, match=RECORD_FILE):
        Record.read(tmp_path)


def test_a_lineage_too_deep_to_read_is_refused() -> None:
    values = minimal()
    for _ in range(600):
        values = minimal(parents=[values])
    with pytest.raises(ModelFileError, match="not a record"):
        Record.from_json(values)


def test_a_record_that_is_a_folder_or_a_dead_link_is_no_record(tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).mkdir()
    with pytest.raises(ModelFileError, match="is not a regular file"):
        Record.read(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / RECORD_FILE).symlink_to("nowhere")
    try:
        assert Record.read(tmp_path / "other") is None
    except MissingError:
        pytest.fail("a dead link is an absent record")
