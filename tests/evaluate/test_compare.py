"""The comparison's table on scripted engines."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from miudo.engine.fake import FakeEngine
from miudo.errors import UsageError
from miudo.evaluate.bench import Bench, BenchSettings, speed
from miudo.evaluate.compare import (
    CompareSettings,
    compare,
    comparison_json,
    comparison_table,
    size_on_disk,
)
from miudo.evaluate.divergence import Divergence, divergence
from miudo.protocol import Tokenizer
from miudo.report import text_table
from miudo.tensors import DType, StoredTensor, parameter_count, tensor_table

MakeEngine = Callable[..., FakeEngine]


@pytest.fixture
def models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_engine: MakeEngine, letters: Tokenizer
) -> dict[str, Path]:
    """Three files: a model, one unlike it, one of another tokenizer; the last is small."""
    other = SimpleNamespace(**{name: getattr(letters, name) for name in ("encode", "token_bytes")})
    other.fingerprint = "other"
    made = {
        "first": (make_engine(0), letters),
        "second": (make_engine(1), letters),
        "foreign": (make_engine(0, max_positions=16), other),
    }
    for name in made:
        (tmp_path / name).write_bytes(b"x" * 1000)

    def load(path: Path, **options: Any) -> Any:
        engine, tokenizer = made[path.name]
        weights = {
            spec.name: StoredTensor(
                DType.F32, spec.shape, np.zeros(DType.F32.size_bytes(spec.shape), np.uint8)
            )
            for spec in tensor_table(engine.config)
        }
        model = SimpleNamespace(config=engine.config, weights=weights)
        return SimpleNamespace(
            path=path, model=model, engine=engine, tokenizer=tokenizer, adapter=None
        )

    def bench(path: Path, settings: BenchSettings, **options: Any) -> Bench:
        return Bench(
            speed(made[path.name][0], BenchSettings(4, 2, 1)), 0.1, 2e6, "VmHWM", "here", 2
        )

    monkeypatch.setattr("miudo.evaluate.compare.load_model", load)
    monkeypatch.setattr("miudo.evaluate.compare.bench_path", bench)
    return {name: tmp_path / name for name in made}


def test_every_model_gets_a_row_and_the_first_is_the_reference(
    models: dict[str, Path], make_engine: MakeEngine
) -> None:
    said: list[str] = []
    documents = ["abcabcjjjihg", "bca"]
    rows = compare(list(models.values()), documents, CompareSettings(), progress=said.append)
    assert [row.name for row in rows] == list(models)
    first, second, foreign = rows
    assert first.divergence is not None
    assert first.divergence.kl == 0.0
    assert second.divergence is not None
    assert second.divergence.kl > 0.0
    assert foreign.divergence is None
    assert "tokenizer" in str(foreign.note)
    assert {row.quality.context for row in rows} == {16}
    assert first.size_bytes == 1000
    assert first.parameters == parameter_count(make_engine().config)
    assert first.bits_per_weight == 32.0
    assert len(said) == 9


def test_the_first_model_is_not_measured_against_itself(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs: list[tuple[Any, Any]] = []

    def counted(first: Any, second: Any, ids: Any, **options: Any) -> Divergence:
        pairs.append((first, second))
        return divergence(first, second, ids, **options)

    monkeypatch.setattr("miudo.evaluate.compare.divergence", counted)
    documents = ["abcabcjjjihg", "bca"]
    first, second = compare([models["first"], models["second"]], documents, CompareSettings())
    assert len(pairs) == 1
    assert second.divergence is not None
    assert first.divergence == Divergence(0.0, 0.0, 1.0, second.divergence.positions)


def test_the_table_and_the_json_hold_every_number_with_its_method(models: dict[str, Path]) -> None:
    rows = compare(list(models.values()), ["abcabc"], CompareSettings())
    table = comparison_table(rows)
    assert all(len(cells) == len(table.headers) for cells in table.rows)
    assert "n/a" in table.rows[2]
    for word in (
        "context 16",
        "here, 2 threads",
        "stride 8",
        "VmHWM",
        "estimate",
        "W assumed",
        "foreign",
    ):
        assert word in table.caption
    assert "second" in text_table(table)
    values = json.loads(json.dumps(comparison_json(rows), allow_nan=False))
    assert values["models"][1]["divergence"] == dataclasses.asdict(rows[1])["divergence"]


def test_names_are_as_long_as_needed(models: dict[str, Path], tmp_path: Path) -> None:
    again = tmp_path / "deeper" / "first"
    again.parent.mkdir()
    again.write_bytes(b"y")
    rows = compare([models["first"], again], ["abc"], CompareSettings())
    assert rows[1].name == "deeper/first"


def test_no_model_is_an_error() -> None:
    with pytest.raises(UsageError):
        compare([], ["a"], CompareSettings())


def test_the_size_of_a_folder_is_its_weights_and_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 10)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 5)
    (tmp_path / "loss.png").write_bytes(b"x" * 100)
    assert size_on_disk(tmp_path) == 15
